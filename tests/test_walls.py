"""The rooms of the package and their order."""

import ast
import pathlib
import re

import e3d_jax

PACKAGE = pathlib.Path(e3d_jax.__file__).parent
# A room imports itself and the rooms before it.
ROOMS = (
    "structs",
    "files",
    "stores",
    "settings",
    "distributed",
    "cameras",
    "color_profiles",
    "cutout",
    "images",
    "raycast",
    "lens",
    "colmap",
    "transforms",
    "views_io",
    "diffusion",
    "models",
    "data",
    "mesh",
    "reconstruction",
    "config",
    "stages",
    "presets",
    "weights",
    "evaluation",
    "training",
    "reports",
    "events",
    "system",
    "fitting",
    "outputs",
    "benchmark",
    "checkpoint_scores",
    "app",
    "cli",
    "__main__",
)


def room_of(path):
    """The room of a file."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(source):
    """The rooms that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "e3d_jax":
            below = node.module.split(".")[1:]
            yield from [below[0]] if below else [name.name for name in node.names if name.name != "__version__"]
        elif isinstance(node, ast.Import):
            yield from (name.name.split(".")[1] for name in node.names if name.name.startswith("e3d_jax."))


def test_every_file_has_a_room():
    rooms = {room_of(path) for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert rooms == set(ROOMS)


def test_the_readme_lists_the_rooms_in_order():
    table = (PACKAGE.parent / "README.md").read_text().partition("| in `e3d_jax/` |")[2].partition("\n\n")[0]
    rooms = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert (*re.findall(r"`(\w+)(?:\.py|/)`", " ".join(rooms)), "__main__") == ROOMS


def test_rooms_import_only_those_before_them():
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {other}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if (room := room_of(path)) != "__init__"
        for other in imported_rooms(path.read_text())
        if ROOMS.index(other) > ROOMS.index(room)
    ]
    assert not wrong


def test_imports_inside_functions_are_seen():
    assert list(imported_rooms("def f():\n    from e3d_jax.cli import flags\n    import e3d_jax.data.records\n")) == [
        "cli",
        "data",
    ]


def test_production_code_patches_nothing():
    assert not [path for path in PACKAGE.rglob("*.py") if "unittest" in path.read_text()]
