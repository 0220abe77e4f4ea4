"""The packages to install: makemoe, and configs/ as makemoe/configs. All else: pyproject.toml.

configs/ stands at the top of the repository, where people look for it. setuptools can put a folder
elsewhere into a package, but only if pyproject.toml then lists every package by hand.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["makemoe", "makemoe.*"]), "makemoe.configs"],
    package_dir={"makemoe.configs": "configs"},
)
