"""Row check: problems of one row and its facts for statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from deepeyes_plugins.data import rl_rows
from deepeyes_plugins.data.check.images import ImageInfo, image_warnings, inspect_image
from deepeyes_plugins.data.check.rl import (
    RowRules,
    column_findings,
    inspect_images,
    shape_findings,
    with_images,
)
from deepeyes_plugins.data.check.statistics import RowFacts
from deepeyes_plugins.data.contracts import Conversation, Formatter, RowError, TokenCounter
from deepeyes_plugins.data.dataset_info import Entry, RowForm, media_roots
from deepeyes_plugins.data.findings import DataError, Finding
from deepeyes_plugins.data.formatter import check_opening, format_row, row_warnings
from deepeyes_plugins.data.hooks import formatters
from deepeyes_plugins.data.media import MediaError, MediaRoot
from deepeyes_plugins.plugins import UnknownNameError
from deepeyes_plugins.protocol.actions import AnswerAction, parse_action
from deepeyes_plugins.protocol.dialect import DEEPEYES_V2, IMAGE_PLACEHOLDER
from deepeyes_plugins.protocol.missing import text_of

Kind = Literal["sft", "rl", "search-cache"]

TOO_LONG = "length"
"""Key of findings on rows over the token limit of training."""


@dataclass(frozen=True, slots=True)
class CheckRules:
    """How rows are checked.

    Attributes:
        rows: Settings for RL rows: environments, rewards, media.
        media: Folder or zip file that image paths of SFT files are relative to; ``None`` for the
            folder of the file.
        formatter: Name of the formatter of SFT rows.
        opening: Required beginning of assistant turns in SFT data.
        decode: Whether to decode the pixels of images, not only headers.
        tokens: Token counter; ``None`` to count no tokens.
        prompt_tokens: Maximum tokens of an RL prompt (verl's ``data.max_prompt_length``).
        conversation_tokens: Maximum tokens of an SFT row (LLaMA-Factory's ``cutoff_len``).
    """

    rows: RowRules = field(default_factory=RowRules)
    media: Path | None = None
    formatter: str = "deepeyes"
    opening: str = DEEPEYES_V2.prefill
    decode: bool = True
    tokens: TokenCounter | None = None
    prompt_tokens: int = 8192
    conversation_tokens: int = 20480


@dataclass(frozen=True, slots=True)
class RowCheck:
    """Findings and facts of a row; ``facts`` is ``None`` if it cannot be read."""

    findings: tuple[Finding, ...]
    facts: RowFacts | None = None


def row_checker(
    kind: Kind, path: Path, rules: CheckRules, entry: Entry | None = None
) -> Callable[[Mapping[str, Any]], RowCheck]:
    """Return the function that checks rows of a file.

    Args:
        kind: Kind of the file.
        path: The file.
        rules: How rows are checked.
        entry: Entry of a dataset_info.json that names the file; image paths are relative to its
            folder.

    Raises:
        DataError: The media folder or the formatter does not exist.
    """
    if kind == "rl":
        return lambda row: _check_rl(row, rules, rules.rows.root_of(path))
    if kind == "search-cache":
        root = (rules.media or path.parent).absolute()
        return lambda row: _check_cache(row, rules, root)
    folder = path.parent if entry is None else entry.info.parent
    form = RowForm() if entry is None else entry.form
    name = entry.formatting if entry and entry.formatting in formatters() else rules.formatter
    try:
        media = MediaRoot.open(
            folder if rules.media is None else rules.media,
            (folder, *media_roots(path if entry is None else entry.path)),
            "--media-root",
        )
        formatter = formatters()[name]
    except (MediaError, UnknownNameError) as error:
        raise DataError(f"{path}: {error}") from error
    return lambda row: _check_sft(form.read(row), formatter, rules, media)


def _check_rl(row: Mapping[str, Any], rules: CheckRules, root: Path) -> RowCheck:
    try:
        row = rl_rows.plain_row(row)
    except RowError as error:
        return RowCheck((Finding(str(error), "prompt"),))
    seen = inspect_images(row, root, decode=rules.decode)
    findings = list(shape_findings(seen))
    good = _readable(seen)
    findings += column_findings(row, seen if len(good) == len(seen) else None, rules.rows)
    findings += _image_warnings(seen)
    if len(good) < len(seen):
        return RowCheck(tuple(findings))
    try:
        messages = rl_rows.prompt_messages(with_images(row, seen))
    except RowError:
        return RowCheck(tuple(findings))
    turns = [
        (
            message.role,
            "".join(part if isinstance(part, str) else IMAGE_PLACEHOLDER for part in message.parts),
        )
        for message in messages
    ]
    tokens = None
    if rules.tokens is not None:
        tokens = rules.tokens.prompt(turns, [one.size for one in good])
        if tokens > rules.prompt_tokens:
            findings.append(
                Finding(
                    f"{tokens} tokens, more than data.max_prompt_length={rules.prompt_tokens}; "
                    "training leaves the row out",
                    TOO_LONG,
                    "warning",
                )
            )
    model = row.get("reward_model")
    truth = model.get("ground_truth") if isinstance(model, Mapping) else None
    source, environment = row.get("data_source"), row.get("env_name")
    facts = RowFacts(
        question=messages[-1].text,
        images=tuple(good),
        turns=len(messages),
        characters=sum(len(message.text) for message in messages),
        source=text_of(source),
        environment=text_of(environment),
        answer=text_of(truth) or None,
        tokens=tokens,
    )
    return RowCheck(tuple(findings), facts)


def _check_sft(
    row: Mapping[str, Any], formatter: Formatter, rules: CheckRules, media: MediaRoot
) -> RowCheck:
    findings: list[Finding] = []
    try:
        conversation = format_row(formatter, row)
    except RowError as error:
        return RowCheck((Finding(str(error)),))
    try:
        check_opening(conversation, rules.opening)
    except RowError as error:
        findings.append(Finding(str(error)))
    seen = [
        inspect_image(number, image, media, decode=rules.decode)
        for number, image in enumerate(conversation.images, 1)
    ]
    findings += [one for one in seen if isinstance(one, Finding)]
    findings += [Finding(warning, level="warning") for warning in row_warnings(conversation)]
    findings += _image_warnings(seen)
    good = _readable(seen)
    tokens = None
    if rules.tokens is not None and len(good) == len(seen):
        tokens = rules.tokens.conversation(conversation.turns, [one.size for one in good])
        if tokens > rules.conversation_tokens:
            findings.append(
                Finding(
                    f"about {tokens} tokens, more than cutoff_len={rules.conversation_tokens}; "
                    "training truncates the row",
                    TOO_LONG,
                    "warning",
                )
            )
    return RowCheck(tuple(findings), _sft_facts(row, conversation, good, tokens))


def _sft_facts(
    row: Mapping[str, Any], conversation: Conversation, images: list[ImageInfo], tokens: int | None
) -> RowFacts:
    actions = [
        (parse_action(text), text) for role, text in conversation.turns if role == "assistant"
    ]
    last = actions[-1][0]
    source = row.get("data_source") or row.get("source")
    return RowFacts(
        question=next((text for role, text in conversation.turns if role == "user"), ""),
        images=tuple(images),
        turns=len(conversation.turns),
        characters=sum(len(text) for _, text in conversation.turns),
        source=source if isinstance(source, str) else "",
        answer=last.text if isinstance(last, AnswerAction) else None,
        actions=tuple(_action_name(action) for action, _ in actions),
        tokens=tokens,
    )


def _action_name(action: object) -> str:
    return "none" if action is None else type(action).__name__.removesuffix("Action").lower()


def _check_cache(row: Mapping[str, Any], rules: CheckRules, root: Path) -> RowCheck:
    titles, places = row["titles"], row["images"]
    findings: list[Finding] = []
    if len(titles) != len(places):
        findings.append(
            Finding(f"{row['name']}: {len(titles)} titles but {len(places)} images", "images")
        )
    if not any(places):
        findings.append(Finding(f"{row['name']}: no image at all", "images", "warning"))
    files = [place for place in places if place and not place.startswith(("http://", "https://"))]
    seen = [
        inspect_image(number, {"path": place}, root, decode=rules.decode)
        for number, place in enumerate(files, 1)
    ]
    findings += [
        Finding(f"{row['name']}: {one.reason}", one.key) for one in seen if isinstance(one, Finding)
    ]
    findings += _image_warnings(seen)
    facts = RowFacts(
        question=row["name"],
        images=tuple(_readable(seen)),
        characters=sum(len(title or "") for title in titles),
    )
    return RowCheck(tuple(findings), facts)


def _readable(seen: Sequence[ImageInfo | Finding]) -> list[ImageInfo]:
    return [one for one in seen if isinstance(one, ImageInfo)]


def _image_warnings(seen: Sequence[ImageInfo | Finding]) -> Iterator[Finding]:
    for number, one in enumerate(seen, 1):
        if isinstance(one, ImageInfo):
            yield from image_warnings(number, one)
