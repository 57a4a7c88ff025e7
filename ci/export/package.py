"""The package ``common``: which of its modules a bundle needs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class ExportError(RuntimeError):
    """The bundle cannot be exported; the message says why and what to do."""


class CommonPackage:
    """The package ``common`` of a repository: which modules there are, and what each needs.

    Args:
        root: folder of the repository.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / "common"
        self.names = {path.stem for path in self.folder.iterdir() if path.suffix == ".py" or _is_package(path)}
        # what a text may mean by `common.`: one of these names must follow
        choices = "|".join(sorted(self.names - {"__init__"}))
        self.mention = re.compile(rf"(?<![\w./])common\.(?=(?:{choices})\b)(?P<rest>[\w.]*\w)")
        self.command = re.compile(r"python -m common\.(?P<module>\w+(?:\.\w+)*)")

    def find(self, dotted: str) -> Path:
        """File of the module that a dotted name, ``common.`` left out, begins with."""
        place = self.folder
        for part in filter(None, dotted.split(".")):
            if _is_package(place / part):
                place = place / part
            elif (place / f"{part}.py").is_file():
                return place / f"{part}.py"
            else:
                break
        return place / "__init__.py"

    def closure(self, dotted: Iterable[str]) -> set[Path]:
        """Files of the modules with these names and, over and over, of what they import."""
        waiting = [self.find(name) for name in dotted]
        found: set[Path] = set()
        while waiting:
            path = waiting.pop()
            if path in found:
                continue
            found.add(path)
            packages = [folder / "__init__.py" for folder in path.parents if folder.is_relative_to(self.folder)]
            waiting += [*packages, *self._imports(path), *map(self.find, self.commands(path.read_text()))]
        return found

    def mentions(self, text: str) -> set[str]:
        """Dotted names that follow ``common.`` in a text."""
        return {match["rest"] for match in self.mention.finditer(text)}

    def commands(self, text: str) -> set[str]:
        """Modules that a text tells to run by ``python -m common.<module>``."""
        return {f"{match['module']}.__main__" for match in self.command.finditer(text)}

    def _imports(self, path: Path) -> Iterator[Path]:
        if path.name == "__init__.py" and "iter_modules(__path__)" in path.read_text():  # a registry: all go along
            yield from path.parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level > 0:
                base = path.parents[node.level - 1].relative_to(self.folder).parts
                module = [*base, *filter(None, (node.module or "").split("."))]
                yield from (self.find(".".join([*module, alias.name])) for alias in node.names)
            elif imports_absolutely(node, "common"):
                raise ExportError(f"{path}: imports `common` absolutely. Fix: imports inside common are relative.")


def _is_package(path: Path) -> bool:
    return (path / "__init__.py").is_file()


def imports_absolutely(node: ast.AST, package: str) -> bool:
    """Whether a statement imports a package, or something of it, by its full name."""
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
        names = [node.module or ""]
    return any(name.split(".")[0] == package for name in names)


def names_from_common(path: Path, text: str) -> Iterator[str]:
    """Dotted names, ``common.`` left out, that a Python file imports from there.

    Raises:
        ExportError: it imports ``common`` as a whole.
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import) and imports_absolutely(node, "common"):
            raise ExportError(f"{path}: `import common...`. Fix: write `from common.x import y`.")
        if isinstance(node, ast.ImportFrom) and imports_absolutely(node, "common"):
            module = (node.module or "").removeprefix("common").removeprefix(".")
            yield from (f"{module}.{alias.name}" for alias in node.names)
