"""Conversion of published image caches: DeepEyesV2's (JSON) and MMSearch-R1's (pickle).

Both map question ids to titles and images. DeepEyesV2's images are files beside the cache,
MMSearch-R1's are URLs of thumbnails.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from deepeyes_plugins.files import read_json
from deepeyes_plugins.protocol.content import EncodedImage, ImageError, encodable
from deepeyes_plugins.search.contracts import ImageResult
from deepeyes_plugins.search.fetching import Fetcher, FetchError, FetchRules
from deepeyes_plugins.search.image_cache import ImageCacheError, ImageCacheWriter
from deepeyes_plugins.search.plain_pickle import NotPlainError, load_plain
from deepeyes_plugins.search.thumbnails import LONGEST_SIDE, thumbnail

_BATCH_ROWS = 16
_AT_ONCE = 64


class _Entry(BaseModel):
    model_config = ConfigDict(extra="ignore")

    titles: list[str | None] = Field(
        validation_alias=AliasChoices("tool_returned_web_title", "tool_returned_web_title_list"),
        max_length=1000,
    )
    images: list[str | None] = Field(
        validation_alias=AliasChoices("cached_images_path", "tool_returned_images_urls"),
        max_length=1000,
    )


_ENTRIES = TypeAdapter(dict[str, _Entry])


def read_beside(root: Path, name: str) -> bytes:
    """Read an image file of a published cache.

    Args:
        root: Base folder of the path.
        name: Relative path.

    Raises:
        OSError: The file is missing, cannot be read, or is outside ``root``.
    """
    return _file(root, name).read_bytes()


def convert(
    sources: Sequence[Path],
    output: Path,
    *,
    read_image: Callable[[Path, str], bytes] = read_beside,
    questions: Sequence[Path] = (),
    rules: FetchRules | None = None,
    longest_side: int = LONGEST_SIDE,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Counter[str]:
    """Merge published caches into one image cache.

    Args:
        sources: The caches, ``.json`` or ``.pkl``. If two answer one question, the first is used.
        output: The new file; it appears when it is complete.
        read_image: Reads an image, by default relative to the folder of the source; raises
            :class:`OSError` if it is missing.
        questions: Parquet files with the questions' images (``images``, and ``data_id`` or
            ``extra_info.index``), so that responses are found by image too.
        rules: Limits for downloads of thumbnails that are URLs; ``None`` to download none, so that
            their results have a title only.
        longest_side: Maximum side of a thumbnail in pixels.
        progress: Called with the name of the step, the number done, and the total.

    Returns:
        Counts: answers, results, thumbnails, null (results without an image, omitted as in the
        reference code), missing (image files that are missing or unreadable, omitted), not_fetched,
        questions, broken_questions.

    Raises:
        ImageCacheError: A source cannot be read.
    """
    entries: dict[str, tuple[_Entry, Path]] = {}
    for source in sources:
        for name, entry in read_entries(source).items():
            entries.setdefault(name, (entry, source.parent))
    if not entries:
        raise ImageCacheError("the sources contain no responses")
    counts: Counter[str] = Counter(answers=len(entries))
    with ImageCacheWriter(output) as writer:
        writer.fact("sources", json.dumps([str(source) for source in sources]))
        asyncio.run(_answers(writer, entries, read_image, rules, longest_side, counts, progress))
        for done, (name, image) in enumerate(_images_of(questions), 1):
            if name not in entries:
                continue
            try:
                writer.question(name, image)
                counts["questions"] += 1
            except ImageError:
                counts["broken_questions"] += 1
            progress("images of questions", done, 0)
    return counts


def read_entries(source: Path) -> Mapping[str, _Entry]:
    """Read a published cache.

    Raises:
        ImageCacheError: The file cannot be read, or is not such a cache.
    """
    try:
        data = source.read_bytes()
        is_json = data.lstrip()[:1] == b"{"
        return _ENTRIES.validate_python(read_json(data) if is_json else load_plain(data))
    except OSError as error:
        raise ImageCacheError(f"{source}: {error.strerror}") from error
    except NotPlainError as error:
        raise ImageCacheError(
            f"{source}: not read: {error}; expected JSON, or a pickle of plain values"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ImageCacheError(
            f"{source}: not a cache of image searches: {'.'.join(map(str, first['loc'][:3]))}: "
            f"{first['msg']}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ImageCacheError(f"{source}: cannot be read: {error}") from error


async def _answers(
    writer: ImageCacheWriter,
    entries: Mapping[str, tuple[_Entry, Path]],
    read_image: Callable[[Path, str], bytes],
    rules: FetchRules | None,
    longest_side: int,
    counts: Counter[str],
    progress: Callable[[str, int, int], None],
) -> None:
    fetcher = None if rules is None else Fetcher(rules)

    async def results(entry: _Entry, root: Path) -> list[ImageResult]:
        found = []
        for title, source in zip_longest(entry.titles, entry.images):
            if source is None:
                counts["null"] += 1
                continue
            image: EncodedImage | None = None
            is_url = source.startswith(("http://", "https://"))
            try:
                if not is_url:
                    image = thumbnail(read_image(root, source), longest_side)
                elif fetcher is not None:
                    image = thumbnail((await fetcher.fetch(source)).body, longest_side)
            except (ImageError, OSError, FetchError):
                if not is_url:
                    counts["missing"] += 1
                    continue
            counts["not_fetched"] += is_url and image is None
            counts["thumbnails"] += image is not None
            found.append(ImageResult(encodable(title or ""), image))
        counts["results"] += len(found)
        return found

    names = sorted(entries)
    try:
        for start in range(0, len(names), _AT_ONCE):
            batch = names[start : start + _AT_ONCE]
            found = await asyncio.gather(*(results(*entries[name]) for name in batch))
            for name, result in zip(batch, found, strict=True):
                writer.answer(encodable(name), result)
            progress("answers", start + len(batch), len(names))
    finally:
        if fetcher is not None:
            await fetcher.aclose()


def _file(root: Path, name: str) -> Path:
    """Return the path of a file below ``root``.

    Raises:
        FileNotFoundError: The path leads out of ``root``.
    """
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise FileNotFoundError(name)
    return path


def _images_of(files: Iterable[Path]) -> Iterator[tuple[str, EncodedImage]]:
    """Yield id and first image of each question."""
    import pyarrow.parquet

    for file in files:
        try:
            table = pyarrow.parquet.ParquetFile(file)
            present = set(table.schema_arrow.names)
            columns = [one for one in ("data_id", "id", "extra_info", "images") if one in present]
            if "images" not in columns:
                raise ImageCacheError(f"{file}: no column `images`")
            for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                for row in batch.to_pylist():
                    name, data = _name(row), _data(row["images"])
                    if name and data:
                        yield name, EncodedImage(data)
        except (OSError, pyarrow.ArrowException) as error:
            raise ImageCacheError(f"{file}: cannot be read as Parquet: {error}") from error


def _name(row: Mapping[str, Any]) -> str:
    extra = row.get("extra_info")
    if not isinstance(extra, Mapping):
        extra = {}
    for value in (row.get("data_id"), extra.get("data_id"), extra.get("index"), row.get("id")):
        if value is not None:
            return str(value)
    return ""


def _data(images: Any) -> bytes:
    first = images[0] if isinstance(images, list) and images else images
    if isinstance(first, Mapping):
        first = first.get("bytes")
    return first if isinstance(first, bytes) else b""
