"""Guards against reward hacking by answers: hedging, and instructions to the judge.

Guards refuse only text that no honest answer contains. Text of the reference or the question is
allowed. The limit on an answer's length and the judge's prompt, which marks the answer as data, are
the other two defences.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from deepeyes_plugins.rewards.rules import rule_verdict


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


LONGEST_HEDGE = 500
"""Maximum characters of a hedge; a longer answer is prose, in which separators mean nothing."""

# --- Hedging over the options of a multiple-choice question ---------------------------------------

_LEAD_IN = re.compile(
    r"(?:\W*\b(?:(?:the\s+|my\s+)?(?:final\s+|correct\s+|right\s+|best\s+)?(?:answers?|options?"
    r"|choices?)(?:\s+(?:is|are|could\s+be|may\s+be|might\s+be))?|it(?:\s+is|'s|\s+(?:could|may"
    r"|might)(?:\s+also)?\s+be)?|i\s+(?:think|choose|guess|pick|say)|maybe|perhaps|probably"
    r"|possibly|either|both|also|alternatively|but|could(?:\s+also)?\s+be|may\s+be|might\s+be"
    r"|(?:is|are)\s+(?:either|both))\b[\s:：]*"
    r"|\W*(?:答案|选项|正确答案)?(?:应该)?(?:是|为|选(?!项)|可能是|也可能是|可能|也许是?|或许是?|要么是?)[\s:：]*"
    r"|\W*(?:答案|选项)[\s:：]*|\W*all\s+of\s+(?:them|these|the\s+above)\b[\s:：]*)+",
    re.IGNORECASE,
)
_AND_OR = r"(?:and/or|or|and)\b|或者?是?|和|与|以及|还是"
_JOINED_LETTER = re.compile(
    rf"\s{{0,3}}[).:\]]{{0,2}}\s{{0,3}}(?P<joint>[,;/|&、，；]{{1,2}}\s?(?:{_AND_OR})?|{_AND_OR})"
    r"\s{0,3}(?:(?:maybe|perhaps|possibly|option|choice)\s|选项|也?可能是?)?\s?"
    r"[(\[]?(?P<letter>[A-Za-z])(?![A-Za-z'’.]?[a-z])[)\]]?",
    re.IGNORECASE,
)
_ENDS = re.compile(r"[).:\]]?\s{0,3}(?:\Z|[,.;/|&!?、，。；\n]|(?:and|or)\b|和|或)", re.IGNORECASE)
_LETTERS_ALONE = re.compile(r"[A-Z](?:[\s).:,;/|&+、，；／]+[A-Z])+[).:]?")
_OPTION_MARK = re.compile(
    rf"(?:\A|[\n,;/|&、，；]|\b(?:{_AND_OR}))[ \t]?(?:option\s|选项)?"
    r"(?:\(([A-Za-z])\)|([A-Za-z])[).:、])(?!\w*[.:]\w)",
    re.IGNORECASE,
)
_ROUND_MARK = re.compile(r"\(([A-Z])\)()(?=\s?\w)")
_LETTER = re.compile(r"\W*([A-Za-z])\W*")
_REJECTED = re.compile(
    r"\b(?:wrong|incorrect|false|not|no|never|cannot|unlikely|neither|nor|eliminated?|excluded?"
    r"|ruled\s+out|too|instead|rather|while|whereas)\b|n['’]t\b|[错不非没]|排除"
    r"|\A\W*(?:is|are|was|were|shows?|has|have|had|does|do|did|would|could|depicts?|describes?|refers?"
    r"|means?|says?|points?|contains?)\b|\A\W*[a-z]+s\s(?:the|an?|of|to|only|in|as|no)\b|\A\W*(?:是|有|显示|指|表示)",
    re.IGNORECASE,
)

# --- Hedging over values --------------------------------------------------------------------------

_STRONG = re.compile(
    r"\s*,?\s*\b(?:and/or|or)\b\s*|\s+/\s+|\s*或(?![许然缺多少]|者说)(?:者|是)?\s*|\s*还是\s*"
    r"|\s*,\s*(?=(?:or|maybe|perhaps|possibly|probably|but)\b)",
    re.IGNORECASE,
)
"""Separators that occur only between alternatives."""
_WEAK = re.compile(r"\s*[;；|\n]+\s*")
"""Separators between alternatives or before an explanation."""
_COMMAS = re.compile(r"\s*(?:,(?!\d{3}\b)|[、，])\s*(?:(?:and|or)\b\s*)?|\s+and\s+|\s*[和与]\s*")
_WORD = re.compile(r"[^\W\d_]{3,}|[\u4e00-\u9fff]+")
_TIGHT = re.compile(r"\s?/\s?")
_QUOTED = re.compile(r"(?<!\w)[\"“‘'`«《「](?=\S)[^\"”’'`»》」\n]{1,200}[\"”’'`»》」]")
_SHORT_ANSWER = re.compile(r"[\w\s%$€£¥°.\-'’]+")
_SENTENCE_WORDS = _words(
    "am are as because been can contains could did do does for from had has have he here i in is it"
    " its note of on one reason seen she shown shows since so that there these they this those thus"
    " to was we were which who why will with would you"
)
_CHINESE_SENTENCE = re.compile(r"[因所由是有在的了为这那图可见，。]")
_NO_ALTERNATIVE = _words(
    "so more less fewer thereabouts similar something other others otherwise higher lower later"
    " earlier above below better over under longer about after before not else near"
)
_NUMBER = re.compile(r"[-+]?[$€£¥]?\d+(?:,\d{3})*(?:\.\d+)?%?")
_GROUPED = re.compile(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?")
_DIGITS = re.compile(r"\d+")
_QUANTITY = re.compile(r"(?:([$€£¥])\s?)?[-+]?[\d.,]+\s?(°[cf]|[^\W\d_]+)?")
_NUMBER_WORDS = {
    word: str(number)
    for words in (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
        " fifteen sixteen seventeen eighteen nineteen twenty",
        "零 一 二 三 四 五 六 七 八 九 十 十一 十二 十三 十四 十五 十六 十七 十八 十九 二十",
    )
    for number, word in enumerate(words.split())
}
_JOINTS = _words("and or both either maybe perhaps")
_OPPOSITES = tuple(
    frozenset(pair.split())
    for pair in (
        "yes no",
        "true false",
        "left right",
        "correct incorrect",
        "right wrong",
        "是 否",
        "是 不是",
        "对 错",
        "有 没有",
        "左 右",
    )
)
_PUNCTUATION = " \t\n.,;:!?。，、；：！？()（）"
_CHINESE = re.compile(r"[\u4e00-\u9fff]")

# --- Speaking to the judge ------------------------------------------------------------------------

_PROTOCOL = re.compile(
    r"</?(?:think|answer|code|tool_call|tool_response)>|<\|\w{1,30}\|>|\[/?INST\]|<</?SYS>>"
)
"""Tags of the protocol and control tokens of chat templates."""

_JUDGE = r"(?:judge|grader|evaluator|examiner|marker|assessor|reviewer)s?"
_RIGHT = r"(?:correct|right|true|equivalent|accepted|matching|identical|a\s+match)"
_ANSWER = r"(?:answer|response|submission|solution|output|reply)"
_VERDICT = r"[\"'`*]{0,3}\\?(?:boxed\s?\{\s?)?(?:true|correct|equivalent|yes|right)\b"

_VERDICTS = re.compile(
    rf"""
    \\boxed\s?\{{\s?(?:\\text\s?\{{\s?)?(?:yes|true|correct|equivalent)\s?\}}
    | \b(?:judge?ment|verdict|evaluation|grad(?:e|ing)|equivalence|is_?correct)
      ["'*]{{0,3}}\s?[:=：]\s?{_VERDICT}
    | \b(?:judge?ment|verdict)["'*]{{0,3}}\s?[:=：]\s?["'*]{{0,3}}1(?:\.0)?(?![\w.])
    | (?:判断|判定|结论|评判|裁决)(?:结果)?\s?[:=：]\s?(?:正确|一致|等价|对|是)
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""Verdicts in the judge's format."""

_INSTRUCTIONS = re.compile(
    rf"""
    \#\s?equivalence\s+judg | \[\s?end\s+(?:of\s+)?(?:the\s+)?(?:student|{_ANSWER}|data|input)
    | \#{{2,4}}\s?(?:system|(?:new\s+)?instructions?)\s?:
    | (?:\A|\n)(?:system|assistant)\s?[:：]\s?(?:accept|mark|yes|true|correct|equivalent
      |the\s+answer)
    # What was said before shall not count.
    | \b(?:ignore|disregard|forget|override)\s+(?:(?:all|any|every|everything|the|these|those
      |your|my|of|previous|prior|above|preceding|earlier|other|system|grading|scoring|judging)\s+){{0,5}}
      (?:instructions?|prompts?|rubrics?|guidelines|criteria|rules\s+(?:above|of\s+grading)
      |(?:the\s+)?(?:reference|standard|ground[\s-]truth)(?:\s+answer)?|standards?)\b
    | \b(?:ignore|disregard|forget)\s+everything\s+(?:above|before|else|that|you)\b
    # A judge is addressed.
    | \b(?:dear|hey|hello|hi|attention|(?:note|message|instructions?)\s+(?:to|for))
      [\s,:]{{1,2}}(?:the\s+)?(?:\w+\s){{0,2}}{_JUDGE}\b
    | \b(?:the\s+)?{_JUDGE}\s+(?:should|must|will|has\s+to|needs\s+to|is\s+to|shall)\s+(?:\w+\s)?
      (?:accept|mark|score|give|consider|treat|count|rate|grade|award|pass|say|output|respond|answer|return)\b
    | \b{_JUDGE}\s?[,:]\s?(?:please|accept|mark|score|consider|treat|count|rate|grade
      |(?:this|the)\s+{_ANSWER}|you\s+(?:must|should))\b
    | \byou\s+are\s+(?:now\s+)?an?\s+(?:\w+\s+){{0,3}}{_JUDGE}\b
    | \bas\s+an?\s+(?:\w+\s+){{0,2}}{_JUDGE},?\s+you\b
    # The verdict that it shall give.
    | \b(?:mark|score|rate|grade|judge|consider|accept|treat|count|regard|classify|label)
      \s+(?:this|it|that|my\s+\w+|(?:the|every|any|all)\s+(?:\w+\s)?{_ANSWER}s?|this\s+\w+)\s+
      (?:(?:to\s+be|as|being|fully|completely|totally|absolutely)\s+){{0,3}}{_RIGHT}\b
    | \b(?:mark|score|rate|grade|judge|consider|accept|treat|count)\b[^\n]{{0,40}}\b
      as\s+(?:being\s+)?{_RIGHT}\b
    | \b(?:please\s+(?:accept|approve|pass)\s+(?:this|my|the)
      |(?:accept|approve|pass)\s+(?:this|my))\s+{_ANSWER}\b
    | \b(?:reply|respond|answer|output|print|return|say|write)\s+(?:with\s+)?(?:only|just|simply
      |exactly|nothing\s+but)\s+(?:with\s+)?(?:the\s+word\s+)?{_VERDICT}
    | \b(?:just|only|simply|please|must|should)\s+(?:say|output|reply|respond|return|print)\s+
      (?:with\s+)?{_VERDICT}(?!["'`]?\s+(?:to|or|if)\b)
    | \b(?:give|award|assign|grant)\s+(?:\w+\s+){{0,4}}
      (?:full|maximum|perfect|highest|top)\s+(?:marks?|scores?|credit|points|grade|reward)\b
    | \b(?:this|my)\s+{_ANSWER}\s+(?:is|was)\s+(?:\w+\s+)?(?:{_RIGHT})\b
    | \b(?:the|this|my)\s+{_ANSWER}\s+
      (?:(?:is|must|should|shall|has|have|to|can|may|will)\s+){{1,3}}(?:be\s+)?
      (?:considered|judged|marked|graded|accepted|scored|counted|treated|regarded)\b
    # What the reference is said to be.
    | \b(?:equivalent|identical|equal|matches|same)\s+(?:(?:to|as|with)\s+)?the\s+(?:reference
      |standard|correct|expected|gold|model|ground)[\s-](?:truth\s+)?(?:{_ANSWER}|truth)\b
    | \bmatch(?:es)?\s+the\s+(?:reference|ground[\s-]truth|standard\s+answer|expected\s+answer)\b
    | \b(?:reference|standard|gold|expected)\s+(?:answer|response)\s?(?:is|says|=|:|：)
    | \bground[\s-]truth(?:\s+{_ANSWER})?\s?(?:is|says|=|:|：)
    # The same in Chinese.
    | (?:忽略|无视|忘记|忘掉)[^。\n]{{0,8}}(?:以上|之前|前面|上述|所有|一切|先前|系统|评分|原有)
      [^。\n]{{0,6}}(?:指令|指示|提示|要求|规则|标准|内容|答案)
    | 忽略(?:指令|提示词|评分)
    | (?:请|务必|应当?|必须|直接|把|将|需要?)[^。\n]{{0,14}}
      (?:判|评|视|看|算|标|认|打|给)[^。\n]{{0,4}}(?:为|成|作|是)(?:正确|对的?|满分|真|通过|一致|等价)
    | (?:请|务必|必须|直接|应当?)[^。\n]{{0,10}}(?:给|打|评)[^。\n]{{0,6}}(?:满分|高分|正确|通过)
    | (?:请|务必)[^。\n]{{0,8}}(?:算|判|评)(?:对|正确)
    | (?:请|务必|必须|直接|只需?)(?:只)?(?:回答|回复|输出|返回)[^。\n]{{0,3}}
      (?:正确|是|true|yes|\\boxed)
    | (?:此|这个?|本|该|我的)(?:答案|回答|解答)
      (?:就是|是|应该是?|应当?|可以|完全|被?视为|被?判为)*正确
    | (?:标准|参考)答案(?:就?是|为|应为|[:：=])
    | [与和同](?:标准|参考)答案(?:完全)?(?:一致|相同|等价|相符)
    | (?:尊敬|亲爱)的?(?:评委|裁判|阅卷|评分|判卷|考官)(?:老师|员|人|模型)?
    | (?:评委|阅卷老师|评分员|评判者|判卷老师|裁判模型|评分模型)[^。\n]{{0,3}}
      (?:请|你好|您好)
    | 你(?:现在)?是[^。\n]{{0,8}}(?:评委|阅卷|评分|判卷|评判)
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""Sentences that tell a judge what to ignore, what to reply, or what the reference is."""

_WORDS = re.compile(r"[a-z]+|\d+|[\u4e00-\u9fff]")
_FILLERS = _words("a all an any as be is it of please say says that the these this to your")
_TRUTH_VALUE = re.compile(
    r"\W*(?:yes|no|true|false|(?:in)?correct|right|wrong)\b|\W*[是否对错不]|\W*正确", re.IGNORECASE
)

Rules = Callable[[str, str], bool | None]
"""As in :mod:`deepeyes_plugins.rewards.correctness`."""


def lists_alternatives(answer: str, ground_truth: str, rules: Rules = rule_verdict) -> bool:
    """Return whether ``answer`` hedges: lists several alternatives, one of them correct.

    For a reference that is an option letter: two options (``A or B``, ``(A) red (B) blue`` on
    separate lines). Otherwise two values, of which one is the reference and another is not
    (``red or blue``, ``7; 8``, ``red, blue, green``). Not hedging: an option with its text, an
    explanation after the answer, the same value in other words (``5 or five``), and any list if
    the reference is a list of alternatives itself.

    Args:
        answer: The model's answer.
        ground_truth: The reference.
        rules: Decide which of the alternatives is correct.
    """
    truth, answer = _normalize(ground_truth), _normalize(answer)
    letter = _LETTER.fullmatch(truth)
    if letter:
        return _hedges_options(answer, letter[1].upper())
    if len(answer) > LONGEST_HEDGE or _STRONG.search(truth) or _WEAK.search(truth):
        return False
    return any(
        _is_hedge(alternatives, truth, rules) for alternatives in _alternatives(answer, truth)
    )


def spells_protocol(answer: str, known: str = "") -> bool:
    """Return whether ``answer`` contains tags of the protocol or control tokens.

    Args:
        answer: The model's answer.
        known: Question and reference, whose text is allowed.
    """
    return any(match[0] not in known for match in _PROTOCOL.finditer(answer))


def speaks_to_judge(answer: str, known: str = "", ground_truth: str = "") -> bool:
    """Return whether ``answer`` addresses the judge.

    That is: tags of the protocol, control tokens, verdicts in the judge's format, and sentences
    that instruct a judge or claim what the reference is.

    Args:
        answer: The model's answer.
        known: Question and reference, whose text is allowed.
        ground_truth: The reference; if it is a truth value, the answer may be one too.
    """
    if spells_protocol(answer, known):
        return True
    answer = _normalize(answer)
    patterns = [_INSTRUCTIONS]
    if not _TRUTH_VALUE.match(ground_truth):
        patterns.append(_VERDICTS)
    known_words = set(_WORDS.findall(known.casefold())) | _FILLERS
    return any(
        not known_words.issuperset(_WORDS.findall(match[0].casefold()))
        for pattern in patterns
        for match in pattern.finditer(answer)
    )


def _hedges_options(answer: str, truth: str) -> bool:
    """Return whether the answer names the option ``truth`` and another one."""
    lead = _LEAD_IN.match(answer)
    start = lead.end() if lead else 0
    options = _joined_letters(answer[start : start + LONGEST_HEDGE])
    if _LETTERS_ALONE.fullmatch(answer):
        options = set(re.findall("[A-Z]", answer))
    if truth in options and len(options) > 1:
        return True
    marks = _ROUND_MARK if _ROUND_MARK.match(answer, start) else _OPTION_MARK
    listed = {letter for letter, text in _marked(marks, answer) if not _REJECTED.search(text)}
    return truth in listed and len(listed) > 1


def _marked(marks: re.Pattern[str], answer: str) -> Iterator[tuple[str, str]]:
    """Yield each marked option with the rest of its line; empty for an option at the start."""
    found = list(marks.finditer(answer))
    starts = [*(match.start() for match in found), len(answer)]
    for match, end in zip(found, starts[1:], strict=True):
        text = answer[match.end() : end].partition("\n")[0]
        yield (match[1] or match[2]).upper(), text if match.start() else ""


def _joined_letters(text: str) -> set[str]:
    """Return option letters at the start, joined by commas, slashes, ``or`` or ``and``."""
    first = re.match(r"[\s(\[\"'`*]{0,4}([A-Za-z])(?![A-Za-z'’])", text)
    if first is None or _REJECTED.search(text.partition("\n")[0]):
        return set()
    letters, position = {first[1].upper()}, first.end()
    while match := _JOINED_LETTER.match(text, position):
        # "B, a red car": after a comma a letter may be a word.
        word = match["letter"] in "aAiI" and match["joint"].strip() not in "/|&"
        if word and not _ENDS.match(text, match.end()):
            break
        letters.add(match["letter"].upper())
        position = match.end()
    return letters


def _alternatives(answer: str, truth: str) -> Iterator[list[str]]:
    """Yield possible splits of an answer into alternatives."""
    parts = _split(_STRONG, answer)
    yield parts
    yield [part for each in parts for part in _WEAK.split(each) if _is_short(part, truth)]
    words = [word for word in re.findall(r"\w+", answer) if word.casefold() not in _JOINTS]
    if frozenset(word.casefold() for word in words) in _OPPOSITES:
        yield words
    lines = [part for part in _WEAK.split(answer) if part]
    if len(lines) != 1:
        return
    line = lines[0]
    listed = [_bare(part) for part in _COMMAS.split(_STRONG.sub(", ", line))]
    if _is_list(listed, truth):
        yield listed
    tight = [_bare(part) for part in _TIGHT.split(line)]
    if len(tight) > 2 and all(_WORD.fullmatch(part) for part in tight):
        yield tight
    numbers = line.split()
    several = len(numbers) > 1 and all(_NUMBER.fullmatch(number) for number in numbers)
    if several and not _GROUPED.fullmatch(line):
        yield numbers


def _split(separators: re.Pattern[str], text: str) -> list[str]:
    """Split ``text`` at separators outside of quotation marks."""
    quoted = [match.span() for match in _QUOTED.finditer(text)]
    parts, position = [], 0
    for match in separators.finditer(text):
        if not any(start < match.start() < end for start, end in quoted):
            parts.append(text[position : match.start()])
            position = match.end()
    return [*parts, text[position:]]


def _is_list(parts: list[str], truth: str) -> bool:
    """Return whether comma-separated parts are alternatives, not one answer with details."""
    if len(parts) < 2 or not all(parts):
        return False
    if all(_NUMBER.fullmatch(_NUMBER_WORDS.get(part.casefold(), part)) for part in parts):
        return True
    if len(parts) < 3 or not all(_is_short(part, truth) for part in parts):
        return False
    # "Paris, Texas, USA" is one place.
    return len(parts) > 3 or not all(part[:1].isupper() for part in parts)


def _is_hedge(alternatives: list[str], truth: str, rules: Rules) -> bool:
    """Return whether one alternative is the reference and another one is not."""
    alternatives = [bare for bare in map(_bare, alternatives) if bare]
    right = [_same(alternative, truth, rules) for alternative in alternatives]
    if not any(right):
        return False
    return any(
        not ok and not _is_aside(alternative, truth)
        for alternative, ok in zip(alternatives, right, strict=True)
    )


def _same(alternative: str, truth: str, rules: Rules) -> bool:
    values = [_NUMBER_WORDS.get(text.casefold(), text) for text in (alternative, truth)]
    return rules(values[0], values[1]) is True


def _is_aside(alternative: str, truth: str) -> bool:
    """Return whether an alternative paraphrases or qualifies the reference (``or so``)."""
    words = alternative.casefold().split()
    if words[0] in _NO_ALTERNATIVE or _other_unit(alternative, truth):
        return True
    other_script = bool(_CHINESE.search(alternative)) != bool(_CHINESE.search(truth))
    if other_script and not _NUMBER.search(alternative) and alternative not in _NUMBER_WORDS:
        return True
    if (digits := _DIGITS.findall(truth)) and alternative.casefold() not in _NUMBER_WORDS:
        return _DIGITS.findall(alternative) in ([], digits)
    if _CHINESE.search(truth):
        return truth in alternative
    return set(truth.casefold().split()) <= set(words)


def _other_unit(alternative: str, truth: str) -> bool:
    """Return whether both are quantities of different units (``12 km or 7.5 miles``)."""
    given, wanted = (_QUANTITY.fullmatch(text.casefold()) for text in (alternative, truth))
    if not given or not wanted or not any(given.groups()) or not any(wanted.groups()):
        return False
    return given.groups() != wanted.groups()


def _is_short(part: str, truth: str) -> bool:
    """Return whether a part could be an answer, not a sentence."""
    bare = _bare(part)
    if not bare or not _SHORT_ANSWER.fullmatch(bare):
        return False
    is_number = _NUMBER.match(bare) or bare.casefold().split()[0] in _NUMBER_WORDS
    if _NUMBER.fullmatch(truth) and not is_number:
        return False
    if _CHINESE.search(bare):
        return len(bare) <= len(truth) + 4 and not _CHINESE_SENTENCE.search(bare)
    words = bare.casefold().split()
    return len(words) <= max(2, len(truth.split()) + 1) and _SENTENCE_WORDS.isdisjoint(words)


def _bare(part: str) -> str:
    """Remove lead-ins (``the answer is``, ``maybe``) and surrounding punctuation."""
    lead = _LEAD_IN.match(part)
    value = part[lead.end() :].strip(_PUNCTUATION) if lead else ""
    return value or part.strip(_PUNCTUATION)


def _normalize(text: str) -> str:
    """Remove bold type and repeated white space, on which patterns would take quadratic time."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line).replace("**", "")
