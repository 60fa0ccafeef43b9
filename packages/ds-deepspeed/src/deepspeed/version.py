"""The release of DeepSpeed whose interface this is, with our own version behind the plus sign."""

from __future__ import annotations

__version__ = "0.19.8+ds.0.1.0"
__version_major__ = 0
__version_minor__ = 19
__version_patch__ = 8
version = __version__
git_hash = __git_hash__ = "none"
git_branch = __git_branch__ = "none"
