"""A table, once, as text, Markdown and LaTeX."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

# Letters that LaTeX would read as commands or does not have. A bracket at the start of a row would be an option of the
# row before.
LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "[": "{[}",
    "]": "{]}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "×": r"$\times$",
    "✗": r"$\times$",
    "α": r"$\alpha$",
    "∞": r"$\infty$",
    "–": "--",
    "—": "---",
}
# A heading above this many letters is set in two lines, or it would set the width of its column.
LONG_HEADING = 15  # letters
# of headings such as 10⁻³, which LaTeX fonts do not have as letters
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")


@dataclass(frozen=True)
class Table:
    """title: one line; headings: of the columns, the first names the rows; best: (row, column) of the cells in bold;
    notes: its foot; groups: {row: heading of the rows from there on}."""

    title: str
    headings: list[str]
    rows: list[list[str]]
    best: set[tuple[int, int]] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    groups: dict[int, str] = field(default_factory=dict)

    def marked(self, mark: Callable[[str], str]) -> list[list[str]]:
        """The rows, with mark(cell) for the best cells."""
        rows = []
        for i, row in enumerate(self.rows):
            rows.append([mark(cell) if (i, j) in self.best else cell for j, cell in enumerate(row)])
        return rows


def text(table: Table) -> str:
    """Columns of letters; an asterisk behind the best."""
    # The asterisks are part of the cells before widths are measured, so columns stay flush.
    rows = [table.headings, *table.marked(lambda cell: f"{cell} *")]
    widths = []
    for column in zip(*rows):
        widths.append(max(len(cell) for cell in column))

    # title, rows, foot, with an empty line between them
    lines = [table.title, ""]
    for number, row in enumerate(rows):
        if number - 1 in table.groups:  # the headings are row 0 here
            lines.append(f"- {table.groups[number - 1]}")
        # the last column is padded too, hence rstrip
        padded = [cell.ljust(width) for cell, width in zip(row, widths)]
        lines.append("  ".join(padded).rstrip())
    notes = list(table.notes)
    if table.best:
        notes.append("* the best")
    if notes:
        lines += ["", *notes]
    return "\n".join(lines) + "\n"


def markdown(table: Table) -> str:
    """A pipe table; the best in bold."""

    def line(cells: list[str]) -> str:
        # a bar would start a new cell
        escaped = [cell.replace("|", "\\|") for cell in cells]
        return "| " + " | ".join(escaped) + " |"

    numbers = len(table.headings) - 1  # columns that are set flush right
    lines = [f"**{table.title}**", "", line(table.headings), line(["---"] + ["---:"] * numbers)]
    for number, row in enumerate(table.marked(lambda cell: f"**{cell}**")):
        if number in table.groups:
            lines.append(line([f"*{table.groups[number]}*", *[""] * numbers]))
        lines.append(line(row))
    # the empty line ends the pipe table; the note would become a row of it
    for note in table.notes:
        lines.append(f"\n{note}")
    return "\n".join(lines) + "\n"


def latex(table: Table, label: str) -> str:
    r"""A table environment, for a document with \usepackage{booktabs,graphicx}; the best in bold, shrunk if wider than
    the text.

    label: for \ref.
    """

    def line(cells: list[str]) -> str:
        return "    " + " & ".join(cells) + r" \\"

    # The cells are escaped before they are made bold, so that the command for bold is not escaped itself.
    printed = Table(table.title, table.headings, [], table.best)
    for row in table.rows:
        printed.rows.append([escape(cell) for cell in row])

    # the methods' names flush left, the numbers right
    columns = "l" + "r" * (len(table.headings) - 1)
    lines = [
        r"\begin{table}[htbp]",
        r"  \centering\small",
        rf"  \caption{{{escape(table.title)}}}",
        rf"  \label{{{label}}}",
        # shrinks a table that is wider than the text and leaves a narrow one as it is
        r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"  \begin{{tabular}}{{{columns}}}",
        r"    \toprule",
        line([_stacked(heading) for heading in table.headings]),
        r"    \midrule",
    ]
    for number, row in enumerate(printed.marked(lambda cell: rf"\textbf{{{cell}}}")):
        if number in table.groups:
            heading = rf"\textit{{{escape(table.groups[number])}}}"
            lines.append(rf"    \multicolumn{{{len(table.headings)}}}{{l}}{{{heading}}} \\")
        lines.append(line(row))
    lines += [r"    \bottomrule", r"  \end{tabular}}"]

    # in small print below the tabular; the caption holds the title alone
    if table.notes:
        foot = escape("; ".join(table.notes))
        lines.append(rf"  \par\smallskip\parbox{{\linewidth}}{{\footnotesize {foot}.}}")
    lines.append(r"\end{table}")
    return "\n".join(lines) + "\n"


def _stacked(heading: str) -> str:
    """A long heading in two lines, as LaTeX."""
    # broken at the first blank, which in "BSR (%) ↑" and "MSE (10⁻³) ↓" keeps the unit with the arrow
    first, space, rest = heading.partition(" ")
    if not space or len(heading) <= LONG_HEADING:
        return escape(heading)
    return rf"\shortstack[r]{{{escape(first)}\\{escape(rest)}}}"


def escape(words: str) -> str:
    """Any text as LaTeX that prints it: its special characters, and those beyond ASCII that the tables use."""

    # Superscripts become plain digits between NULs, which no table holds, so that the letters can be replaced one by
    # one first.
    def between_nuls(match: re.Match) -> str:
        return f"\0{match[0].translate(SUPERSCRIPTS)}\0"

    marked = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", between_nuls, words)
    # Letter by letter rather than by successive replacements, which would escape what they have just written.
    printed = "".join(LATEX.get(letter, letter) for letter in marked)
    return re.sub("\0(.*?)\0", r"$^{\1}$", printed)
