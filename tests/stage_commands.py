"""Command lines of stages, as rules write them."""

from shared.options import flags


def command_line(*options, **values) -> list[str]:
    """Flags of option groups, then ``--name value...`` of each keyword."""
    arguments = [flag for group in options for flag in flags(group)]
    for name, value in values.items():
        listed = value if isinstance(value, (tuple, list)) else (value,)
        arguments += [f"--{name.replace('_', '-')}", *map(str, listed)]
    return arguments
