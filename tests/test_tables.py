"""One table as text, Markdown and LaTeX; what LaTeX would read as a command is printed."""

import shutil
import subprocess

import pytest

from models.evaluation.tables import Table, escape, latex, markdown, text

TABLE = Table(
    "Scores of a_b",
    ["method", "MSE (10⁻³) ↓", "two-sided BSR (%) ↑"],
    [["a|b_1 & 50%", "1.2 ± 0.1", "80 ± 1"], ["[c]", "1.1 ± 0.2", "—"]],
    {(1, 1), (0, 2)},
    ["x < y, #1", "second"],
)


def test_text_has_columns_and_stars():
    lines = text(TABLE).splitlines()
    assert lines[0] == "Scores of a_b" and lines[2].startswith("method       MSE (10⁻³) ↓")
    assert lines[3] == "a|b_1 & 50%  1.2 ± 0.1     80 ± 1 *" and lines[4] == "[c]          1.1 ± 0.2 *   —"
    assert lines[6:] == ["x < y, #1", "second", "* the best"]


def test_markdown_is_bold_and_pipes_are_escaped():
    lines = markdown(TABLE).splitlines()
    assert lines[3:6] == [
        "| --- | ---: | ---: |",
        "| a\\|b_1 & 50% | 1.2 ± 0.1 | **80 ± 1** |",
        "| [c] | **1.1 ± 0.2** | — |",
    ]


@pytest.mark.parametrize(
    "words, printed",
    [
        ("a_b", r"a\_b"),
        ("50%", r"50\%"),
        ("a&b", r"a\&b"),
        ("$x$", r"\$x\$"),
        ("#1", r"\#1"),
        ("{x}", r"\{x\}"),
        ("a\\b", r"a\textbackslash{}b"),
        ("x^2", r"x\textasciicircum{}2"),
        ("~", r"\textasciitilde{}"),
        ("[c]", "{[}c{]}"),
        ("10⁻³", "10$^{-3}$"),
        ("1 ± 2", r"1 $\pm$ 2"),
        ("ↈ", "ↈ"),
    ],
)
def test_latex_escapes(words, printed):
    assert escape(words) == printed


def test_latex_is_bold_where_best():
    lines = latex(TABLE, "tab:x")
    assert r"\textbf{1.1 $\pm$ 0.2}" in lines and r"\textbf{80 $\pm$ 1}" in lines and r"\textbf{1.2" not in lines
    assert lines.count(r"\\" + "\n") == 3 and r"\caption{Scores of a\_b}" in lines and r"\label{tab:x}" in lines


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_latex_compiles(tmp_path):
    lines = [
        r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}",
        latex(TABLE, "tab:x"),
        r"\end{document}",
    ]
    (tmp_path / "x.tex").write_text("\n".join(lines), encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "x.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "Overfull" not in done.stdout, done.stdout[-2000:]
