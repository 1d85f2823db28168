"""The build of a wheel: what a working copy has beside src/ is put into the package, as hydraft/shipped/. See pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
SHIPPED = (
    "train.py",
    "infer.py",
    "conf/**/*.yaml",
    "conf/README.md",
    "data/zh_*.json",
    "data/zh_*.yaml",
    "docs/zh/settings.yaml",
)
PRIVATE = HERE / "conf" / "local"
"""What is this machine's own, such as names of hosts."""


class BuildPy(build_py):
    """Builds the package with the shipped files; an editable install reads them where they are."""

    def run(self) -> None:
        """Build in an empty folder: a module that is no longer there would be in the wheel."""
        if not self.editable_mode:
            for package in ("hydraft", "hydra_plugins"):
                shutil.rmtree(Path(self.build_lib, package), ignore_errors=True)
        super().run()
        for target, source in self._shipped().items():
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def get_source_files(self) -> list[str]:
        """Files of a source distribution, from which a wheel can be built too."""
        return [*super().get_source_files(), *(str(file.relative_to(HERE)) for file in _files())]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Files of the wheel."""
        return [*super().get_outputs(include_bytecode), *self._shipped()]

    def get_output_mapping(self) -> dict[str, str]:
        """Files of the wheel, with their sources."""
        return {**super().get_output_mapping(), **self._shipped()}

    def _shipped(self) -> dict[str, str]:
        if self.editable_mode:
            return {}
        folder = Path(self.build_lib, "hydraft", "shipped")
        return {str(folder / file.relative_to(HERE)): str(file.relative_to(HERE)) for file in _files()}


def _files() -> list[Path]:
    found = (file for pattern in SHIPPED for file in HERE.glob(pattern))
    return sorted(file for file in found if not file.is_relative_to(PRIVATE))


setup(cmdclass={"build_py": BuildPy})
