"""Builds the package with its configs: `--config=lipnext_jax:digits`."""

import pathlib

import setuptools
from setuptools.command import build_py


class BuildWithConfigs(build_py.build_py):
  """Copies configs/ into the package, unless that stays where it is."""

  def run(self) -> None:
    """Copies the packages, and then the configs."""
    super().run()
    if not self.editable_mode:
      target = pathlib.Path(self.build_lib, 'lipnext_jax', 'configs')
      self.mkpath(str(target))
      for config in pathlib.Path('configs').glob('*.py'):
        self.copy_file(str(config), str(target / config.name))


setuptools.setup(cmdclass={'build_py': BuildWithConfigs})
