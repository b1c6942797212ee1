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
_NOT_A_DECLARATION = re.compile(r"\s*(using|typedef|static_assert|return)\b")
_ACCESS = re.compile(r"\b(public|private|protected)\s*$")
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


class _Scanner:
    """Walks the braces and semicolons outside of functions."""

    def __init__(self, code):
        self.code = code
        self.found = []
        self.scopes = []  # per open brace: (name, parameters, start) of a function, "scope" or "value"
        self.start = 0  # of the present statement
        self.parentheses = 0

    def add(self, signature, start, end, is_definition):
        lines = self.code.count("\n", 0, start) + 1, self.code.count("\n", 0, end) + 1
        self.found.append(Function(signature[0], *lines, signature[1], is_definition))

    def statement(self, end):
        """(text, offset of its first character) of the statement that ends here."""
        text = self.code[self.start : end]
        return text, self.start + len(text) - len(text.lstrip())

    def open_brace(self, offset):
        text, start = self.statement(offset)
        head = _without_attributes(_without_template(text))
        # The layout tells a body, which has a space before it, from an initialiser: `x_{x}`.
        if self.parentheses or not text or text[-1] not in " \n" or text.rstrip()[-1:] in ("=", ","):
            self.scopes.append("value")
        elif not _SCOPE.match(head) and (signature := _signature(text)):
            self.scopes.append((*signature, start))
        else:
            self.scopes.append("scope")
            self.start = offset + 1

    def close_brace(self, offset):
        scope = self.scopes.pop()
        if scope == "value":
            return
        if scope != "scope":
            self.add(scope[:2], scope[2], offset, True)
        self.start = offset + 1

    def semicolon(self, offset):
        text, start = self.statement(offset)
        if not _NOT_A_DECLARATION.match(text) and (signature := _signature(text)):
            self.add(signature, start, offset, False)
        self.start = offset + 1

    def scan(self):
        depth = 0  # of braces inside a function
        for offset, char in enumerate(self.code):
            if depth:
                depth += {"{": 1, "}": -1}.get(char, 0)
                if depth == 0:
                    self.close_brace(offset)
            elif char in "()":
                self.parentheses += 1 if char == "(" else -1
            elif char == "{":
                self.open_brace(offset)
                depth = int(isinstance(self.scopes[-1], tuple))
            elif char == "}" and self.scopes:
                self.close_brace(offset)
            elif char == ";" and not self.parentheses and self.scopes[-1:] != ["value"]:
                self.semicolon(offset)
            elif char == ":" and _ACCESS.search(self.code, self.start, offset):
                self.start = offset + 1
        return self.found


def functions(text):
    """The functions of a file, in order of their ends."""
    return _Scanner(blank(text)).scan()
