"""The fingerprint changes with what a stage uses, and with nothing else."""

import textwrap

import pytest

from shared.fingerprint import dependencies, fingerprint


@pytest.fixture
def project(tmp_path):
    """A tiny project: a stage that uses one of two functions of a shared module."""

    def write(path, text):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))

    write("papers/__init__.py", "")
    write("papers/one/__init__.py", '"""One."""')
    write("shared/__init__.py", "")
    write(
        "shared/tools.py",
        '''
        """Tools."""
        import math

        LIMIT = 3

        def helper(x):
            return x + LIMIT

        def used(x):
            """What is used."""
            return helper(x)

        def unused(x):
            return math.sqrt(x)
        ''',
    )
    write(
        "papers/one/train.py",
        '''
        """Train."""
        from shared.tools import used

        def main():
            # a comment
            return used(1)

        if __name__ == "__main__":
            main()
        ''',
    )
    return tmp_path, write


def replace(root, path, old, new):
    file = root / path
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_is_the_same_twice(project):
    root, _ = project
    assert fingerprint("papers.one.train", root=root) == fingerprint("papers.one.train", root=root)


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("papers/one/train.py", "# a comment", "# another comment"),
        ("papers/one/train.py", '"""Train."""', '"""Training."""'),
        ("papers/one/train.py", "return used(1)", "return used(\n        1\n    )"),
        ("shared/tools.py", '"""What is used."""', ""),
        ("shared/tools.py", "return math.sqrt(x)", "return math.cos(x)"),
    ],
)
def test_ignores_comments_docstrings_formatting_and_unused_neighbours(project, path, old, new):
    root, _ = project
    before = fingerprint("papers.one.train", root=root)
    replace(root, path, old, new)
    assert fingerprint("papers.one.train", root=root) == before


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("papers/one/train.py", "used(1)", "used(2)"),
        ("shared/tools.py", "LIMIT = 3", "LIMIT = 4"),
        ("shared/tools.py", "return x + LIMIT", "return x - LIMIT"),
        ("shared/tools.py", "LIMIT = 3", "LIMIT = 3\nprint('a side effect')"),
        ("shared/__init__.py", "", "print('run on import')"),
    ],
)
def test_sees_every_change_to_what_is_used(project, path, old, new):
    root, write = project
    before = fingerprint("papers.one.train", root=root)
    if old:
        replace(root, path, old, new)
    else:
        write(path, new)
    assert fingerprint("papers.one.train", root=root) != before


@pytest.mark.parametrize(
    "statement",
    [
        "import shared.tools\nvalue = shared.tools.used",
        "import shared.tools as tools\nvalue = tools.used",
        "from shared import tools\nvalue = tools.used",
        "from shared.tools import used as f\nvalue = f",
        "def lazily():\n    from shared.tools import used\n    return used",
        "from shared.again import used\nvalue = used",
        "from shared.tools import *\nvalue = used",
    ],
)
def test_follows_every_form_of_import(project, statement):
    root, write = project
    write("shared/again.py", "from shared.tools import used\n")
    write("papers/one/other.py", statement)
    before = fingerprint("papers.one.other", root=root)
    replace(root, "shared/tools.py", "return x + LIMIT", "return x * LIMIT")
    assert fingerprint("papers.one.other", root=root) != before
    assert "shared.tools" in dependencies("papers.one.other", root=root)


def test_follows_relative_imports(project):
    root, write = project
    write("papers/one/method.py", "def step():\n    return 1\n")
    write("papers/one/stage.py", "from .method import step\nvalue = step()\n")
    before = fingerprint("papers.one.stage", root=root)
    replace(root, "papers/one/method.py", "return 1", "return 2")
    assert fingerprint("papers.one.stage", root=root) != before


def test_two_functions_that_swap_bodies_do_not_cancel(project):
    root, write = project
    write("papers/one/stage.py", "def f():\n    return 1\ndef g():\n    return 2\n")
    before = fingerprint("papers.one.stage", root=root)
    write("papers/one/stage.py", "def f():\n    return 2\ndef g():\n    return 1\n")
    assert fingerprint("papers.one.stage", root=root) != before


def test_names_the_module_that_is_missing_or_broken(project):
    root, write = project
    with pytest.raises(ValueError, match=r"papers\.one\.missing"):
        fingerprint("papers.one.missing", root=root)
    write("papers/one/broken.py", "def f(:\n")
    with pytest.raises(ValueError, match=r"broken\.py: line 1"):
        fingerprint("papers.one.broken", root=root)
