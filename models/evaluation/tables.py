"""A table, once, as text, Markdown and LaTeX."""
import re
from dataclasses import dataclass, field

LATEX = {  # what a letter is in LaTeX, where it is not itself; a row that starts with a bracket would be an option of the row before
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "[": "{[}", "]": "{]}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "×": r"$\times$", "✗": r"$\times$", "α": r"$\alpha$", "–": "--", "—": "---",
}
LONG_HEADING = 15  # letters
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")


@dataclass(frozen=True)
class Table:
    """title: one line; headings: of the columns, the first names the rows; best: (row, column) of the cells in bold; notes: its foot."""
    title: str
    headings: list[str]
    rows: list[list[str]]
    best: set[tuple[int, int]] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def text(table: Table) -> str:
    """Columns of letters; an asterisk behind the best."""
    starred = [[f"{cell} *" if (i, j) in table.best else cell for j, cell in enumerate(row)] for i, row in enumerate(table.rows)]
    rows = [table.headings, *starred]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    notes = table.notes + ["* the best"] * bool(table.best)
    return "\n".join([table.title, "", *lines, *([""] if notes else []), *notes]) + "\n"


def markdown(table: Table) -> str:
    """A pipe table; the best in bold."""
    def line(cells):
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    bold = [[f"**{cell}**" if (i, j) in table.best else cell for j, cell in enumerate(row)] for i, row in enumerate(table.rows)]
    rule = line(["---"] + ["---:"] * (len(table.headings) - 1))
    return "\n".join([f"**{table.title}**", "", line(table.headings), rule, *map(line, bold), *(f"\n{note}" for note in table.notes)]) + "\n"


def latex(table: Table, label: str) -> str:
    r"""A table environment, for a document with \usepackage{booktabs,graphicx}; the best in bold, shrunk where wider than the text.

    label: for \ref.
    """
    def line(cells):
        return "    " + " & ".join(cells) + r" \\"
    bold = [[rf"\textbf{{{escape(cell)}}}" if (i, j) in table.best else escape(cell) for j, cell in enumerate(row)]
            for i, row in enumerate(table.rows)]
    notes = [rf"  \par\smallskip\parbox{{\linewidth}}{{\footnotesize {escape('; '.join(table.notes))}.}}"] if table.notes else []
    return "\n".join([r"\begin{table}[htbp]", r"  \centering\small", rf"  \caption{{{escape(table.title)}}}", rf"  \label{{{label}}}",
                      r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
                      rf"  \begin{{tabular}}{{l{'r' * (len(table.headings) - 1)}}}", r"    \toprule",
                      line(map(_stacked, table.headings)), r"    \midrule", *map(line, bold), r"    \bottomrule",
                      r"  \end{tabular}}", *notes, r"\end{table}"]) + "\n"


def _stacked(heading: str) -> str:
    """A long heading in two lines, as LaTeX."""
    first, space, rest = heading.partition(" ")
    return rf"\shortstack[r]{{{escape(first)}\\{escape(rest)}}}" if space and len(heading) > LONG_HEADING else escape(heading)


def escape(words: str) -> str:
    """Any text as LaTeX that prints it: its special characters, and those beyond ASCII that the tables use."""
    powers = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda match: f"\0{match[0].translate(SUPERSCRIPTS)}\0", words)
    printed = "".join(LATEX.get(letter, letter) for letter in powers)
    return re.sub("\0(.*?)\0", r"$^{\1}$", printed)
