"""What may be found on a disk after the power went: every state that POSIX allows after a sequence of changes.

Source: POSIX.1-2017, fsync(): data and names of a file are durable when fsync on the file, and on the folder that
names it, has returned. Before that each change of a folder may have reached the disk or not, whatever others did, and
the data of a file may be there, in part, or as zeros.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ds_core.testing.disks import Operation

__all__ = ["States", "lay_down"]


@dataclass
class _File:
    """`durable`: the content at the last sync, None before the first. `changed`: number of the last change."""

    content: bytearray = field(default_factory=bytearray)
    durable: bytes | None = None
    changed: int = 0


@dataclass
class _Folder:
    """`entries` as they would be without a crash; `durable` at the last sync; `pending` changes since, in order."""

    entries: dict[str, _Node] = field(default_factory=dict)
    durable: dict[str, _Node] = field(default_factory=dict)
    pending: list[_Change] = field(default_factory=list)


_Node = _File | _Folder


@dataclass(frozen=True)
class _Change:
    """An entry that appears (`node`), disappears (None), or moves (`gone` is where it was)."""

    name: str
    node: _Node | None
    gone: str | None = None


Tree = Mapping[str, tuple[bytes, int] | None]
"""Relative path to content and number of the last change, or None for a folder."""


class States:
    """A folder whose changes are replayed, and the states a crash may leave it in.

    Args:
        root: an existing folder; all that is in it is durable.
    """

    def __init__(self, root: Path) -> None:
        self._root: Path = root
        self._top: _Folder = self._read(root)

    def _read(self, path: Path) -> _Folder:
        folder = _Folder()
        for entry in sorted(path.iterdir()):
            if entry.is_dir():
                folder.entries[entry.name] = self._read(entry)
            else:
                content = entry.read_bytes()
                folder.entries[entry.name] = _File(bytearray(content), content, -1)
        folder.durable = dict(folder.entries)
        return folder

    def _folder(self, path: Path) -> _Folder:
        found: _Node = self._top
        for name in path.relative_to(self._root).parts:
            assert isinstance(found, _Folder)
            found = found.entries[name]
        assert isinstance(found, _Folder)
        return found

    def _file(self, path: Path) -> _File:
        found = self._folder(path.parent).entries[path.name]
        assert isinstance(found, _File)
        return found

    def apply(self, done: Operation) -> None:
        """One change that was made."""
        name, parent = done.path.name, self._folder(done.path.parent) if done.path != self._root else self._top
        if done.name in ("create", "make_folder"):
            node: _Node = _File(changed=done.number) if done.name == "create" else _Folder()
            parent.entries[name] = node
            parent.pending.append(_Change(name, node))
        elif done.name in ("remove", "remove_empty"):
            del parent.entries[name]
            parent.pending.append(_Change(name, None))
        elif done.name == "rename":
            assert done.target is not None
            assert done.target.parent == done.path.parent, "a move between folders is two changes"
            node = parent.entries.pop(name)
            parent.entries[done.target.name] = node
            parent.pending.append(_Change(done.target.name, node, gone=name))
        elif done.name == "sync_folder":
            folder = self._folder(done.path)
            folder.durable, folder.pending = dict(folder.entries), []
        elif done.name == "sync":
            file = self._file(done.path)
            file.durable = bytes(file.content)
        elif done.name == "truncate":
            file = self._file(done.path)
            file.content[done.offset :] = bytes(max(0, done.offset - len(file.content)))
            file.changed = done.number
        elif done.name == "write":
            file = self._file(done.path)
            file.content.extend(bytes(max(0, done.offset - len(file.content))))
            file.content[done.offset : done.offset + len(done.data)] = done.data
            file.changed = done.number
        else:
            raise ValueError(f"power loss knows no {done.name}")

    def after_crash(self) -> Iterator[Tree]:
        """States that a crash may leave now, each once.

        Of the changes of folders that are pending: none happened, all did, all but one, only one. Of the data that is
        not durable: all is there, none, the first half, or zeros.
        """
        pending = self._pending(self._top)
        choices: list[frozenset[int]] = [frozenset(), frozenset(pending)]
        choices += [frozenset({one}) for one in pending]
        choices += [frozenset(pending) - {one} for one in pending]
        seen = set()
        for happened in dict.fromkeys(choices):
            for data in ("all", "none", "half", "zeros"):
                tree: dict[str, tuple[bytes, int] | None] = {}
                self._collect(self._top, "", happened, data, tree)
                key = tuple(sorted((path, found and found[0]) for path, found in tree.items()))
                if key not in seen:
                    seen.add(key)
                    yield tree

    def _pending(self, folder: _Folder) -> list[int]:
        """Identities of pending changes of this folder and of all below it, also of those that are not named now."""
        found = [id(change) for change in folder.pending]
        below: dict[int, _Node] = {id(node): node for node in [*folder.entries.values(), *folder.durable.values()]}
        below |= {id(change.node): change.node for change in folder.pending if change.node is not None}
        for node in below.values():
            if isinstance(node, _Folder):
                found += self._pending(node)
        return found

    def _collect(
        self,
        folder: _Folder,
        prefix: str,
        happened: frozenset[int],
        data: str,
        tree: dict[str, tuple[bytes, int] | None],
    ) -> None:
        entries = dict(folder.durable)
        for change in folder.pending:
            if id(change) not in happened:
                continue
            if change.gone is not None:
                entries.pop(change.gone, None)
            if change.node is None:
                entries.pop(change.name, None)
            else:
                entries[change.name] = change.node
        for name, node in entries.items():
            if isinstance(node, _Folder):
                tree[prefix + name] = None
                self._collect(node, f"{prefix}{name}/", happened, data, tree)
            else:
                tree[prefix + name] = (_survives(node, data), node.changed)


def _survives(file: _File, data: str) -> bytes:
    whole = bytes(file.content)
    if file.durable == whole or data == "all":
        return whole
    if data == "none":
        return file.durable or b""
    if data == "half":
        return whole[: len(whole) // 2]
    return bytes(len(whole))


def lay_down(tree: Tree, folder: Path, *, since_s: float = 1_700_000_000.0) -> None:
    """Makes the files and folders of a state in an empty folder, with times of change in the order of the changes."""
    for name in sorted(tree):
        found = tree[name]
        if found is None:
            (folder / name).mkdir(parents=True, exist_ok=True)
        else:
            path = folder / name
            path.write_bytes(found[0])
            os.utime(path, (since_s + found[1], since_s + found[1]))
