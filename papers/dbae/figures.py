"""Figures: the paper's key figures, redrawn from this project's tables and pictures, with the controls in them."""

from shared.stage import Input, Output, run


def draw(
    *,
    figure: str,
    metrics: Input,
    learning: Input,
    evaluations: Input,
    pictures: tuple[Input, ...],
    png: Output,
    pdf: Output,
) -> None:
    """Draw one figure, by the name of its function."""


if __name__ == "__main__":
    run(draw)
