"""Finds the functions of a C++ file: where they start and end, and how many parameters they take.

A scanner of braces, not a compiler: it knows comments, literals, preprocessor lines, and what may stand before a
brace. It is meant for code that clang-format has laid out.
"""

import dataclasses
import re

_IGNORED = re.compile(
    r"""
    //[^\n]*                                          # comment
    | /\*.*?\*/
    | R"(?P<tag>[^\s()\\]{0,16})\(.*?\)(?P=tag)"      # raw string
    | "(?:\\.|[^"\\\n])*"
    | (?<![0-9A-Fa-f])'(?:\\.|[^'\\\n])+'             # a quote between digits separates them
    | ^[ \t]*\#(?:\\\n|[^\n])*                        # preprocessor line
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
_SCOPE = re.compile(r'\s*(?:(?:inline\s+)?(?:namespace|class|struct|union|enum)\b|extern\s*"[^"]*"\s*$)')
_NOT_A_NAME = {"if", "for", "while", "switch", "catch", "return", "requires", "decltype", "noexcept", "alignas"}
_ATTRIBUTE = re.compile(r"\[\[.*?\]\]|\b(?:__launch_bounds__|__attribute__|alignas|requires)\s*\(")


@dataclasses.dataclass(frozen=True)
class Function:
    """A definition or declaration; lines count from 1."""

    name: str
    first_line: int
    last_line: int
    num_parameters: int
    is_definition: bool

    @property
    def num_lines(self):
        return self.last_line - self.first_line + 1


def blank(text):
    """The text with comments, literals and preprocessor lines blanked; every offset and line stays."""

    def hide(match):
        hidden = re.sub(r"[^\n]", " ", match[0])
        return hidden if match[0].lstrip()[:1] in ("/", "#") else '"' + hidden[1:-1] + '"'

    return _IGNORED.sub(hide, text)


def _group_end(text, start):
    """Offset behind the bracket that closes text[start], or the end."""
    depth = 0
    for offset in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[offset], 0)
        if depth == 0:
            return offset + 1
    return len(text)


def _without_attributes(statement):
    while match := _ATTRIBUTE.search(statement):
        end = match.end() if match[0].startswith("[[") else _group_end(statement, match.end() - 1)
        statement = statement[: match.start()] + " " * (end - match.start()) + statement[end:]
    return statement


def _without_template(statement):
    """The statement without leading template<...> parameter lists."""
    while match := re.match(r"\s*template\s*<", statement):
        depth, offset = 1, match.end()
        while depth and offset < len(statement):
            depth += {"<": 1, ">": -1}.get(statement[offset], 0)
            offset += 1
        statement = statement[offset:]
    return statement


def _count_parameters(inside):
    depth, count = 0, 1
    for offset, char in enumerate(inside):
        is_arrow = char == ">" and inside[offset - 1 : offset] == "-"
        depth += 0 if is_arrow else {"(": 1, "<": 1, "{": 1, "[": 1, ")": -1, ">": -1, "}": -1, "]": -1}.get(char, 0)
        count += char == "," and depth == 0
    return 0 if inside.strip() in ("", "void") else count


def _signature(statement):
    """(name, number of parameters) of the function that a statement declares, or None."""
    statement = _without_attributes(_without_template(statement))
    for match in re.finditer(r"(operator\s*\(\s*\)|operator[^\s\w(]+|[~\w:]+)\s*\(", statement):
        name = match[1]
        before = statement[: match.start()]
        if name in _NOT_A_NAME or re.search(r"(?<![=!<>])=(?!=)", before):
            return None
        return name, _count_parameters(statement[match.end() : _group_end(statement, match.end() - 1) - 1])
    return None


def functions(text):
    """The functions of a file, in order of their ends."""
    code = blank(text)
    found = []
    scopes = []  # per open brace: None for a namespace, class or initialiser, else what _signature says
    start = parentheses = 0
    for offset, char in enumerate(code):
        parentheses += {"(": 1, ")": -1}.get(char, 0)
        in_function = any(scope is not None for scope in scopes)
        if char == "{":
            statement = code[start:offset]
            head = _without_attributes(_without_template(statement))
            signature = None
            if not in_function and parentheses == 0 and not _SCOPE.match(head):
                signature = _signature(statement)
            first = start + len(statement) - len(statement.lstrip())
            scopes.append((signature, first) if signature else None)
            if not in_function and not signature and parentheses == 0 and not statement.rstrip().endswith(("=", ",")):
                start = offset + 1
        elif char == "}" and scopes:
            scope = scopes.pop()
            if scope:
                name, count = scope[0]
                lines = code.count("\n", 0, scope[1]) + 1, code.count("\n", 0, offset) + 1
                found.append(Function(name, *lines, count, True))
            if not any(each is not None for each in scopes):
                start = offset + 1
        elif char == ";" and not in_function and parentheses == 0:
            statement = code[start:offset]
            signature = None if re.match(r"\s*(using|typedef|static_assert|return)\b", statement) else _signature(statement)
            if signature:
                first = start + len(statement) - len(statement.lstrip())
                lines = code.count("\n", 0, first) + 1, code.count("\n", 0, offset) + 1
                found.append(Function(signature[0], *lines, signature[1], False))
            start = offset + 1
        elif char == ":" and re.search(r"\b(public|private|protected)\s*$", code[start:offset]):
            start = offset + 1
    return found
