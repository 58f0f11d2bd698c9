"""Compare predicted soft-tissue images with the truth: BSR, MSE, PSNR, LPIPS, SSIM, and what bone suppression needs.

    python metrics.py metrics.prediction=runs/batch_lcm_eval
    python metrics.py metrics.prediction=[runs/ldm_eval,runs/batch_lcm_eval]
    python metrics.py metrics.images=runs/lists/data_testset.txt        only these; what lacks a prediction is named

reads   the images of metrics.prediction and, by the same names, of metrics.cxr and metrics.target; lung masks where
        there are any; the cost of each method from the summary.json that its evaluation left
writes  metrics.output: metrics.txt, .md and .tex (tables of quality, cost, 95 % intervals, paired tests), metrics.csv
        (every image), metrics.json (all), metrics.png (box plots), comparison.png (the first images: CXR | each
        prediction | truth), examples_<method>.png (its best, median and worst image by MSE, with the signed
        difference), report.html (all of this and every image in a viewer; its copies of the images in report_files/)
        with metrics.findings=list.csv also findings.txt, .md, .csv and .png: the contrast that known findings keep, and
        a model observer that looks for them

Everything is brought to metrics.size x metrics.size first: area average where a side shrinks, cubic where it grows. The
row "untouched CXR" is what doing nothing scores; a method that does not beat it is never marked as the best. A file of
another aspect ratio than its truth is a fault. Exit status 1 where a file was missing or unreadable; the rest is scored
and written. A tiny run, seconds on a CPU (an untouched X-ray as the prediction):

    python metrics.py metrics.prediction=data/CXR metrics.size=64 metrics.output=runs/tiny
"""

import sys
from pathlib import Path

from models import config
from models.runtime import entry, garbage

READS = ("runs", "device", "features", "data.root", "metrics")


def main() -> int:
    # settings
    settings = config.parse(__doc__, READS)

    # torch is imported only after the settings: --help and a mistyped key answer at once
    with garbage.importing():
        from models.data import lists
        from models.evaluation import findings, findings_tables, report, scoring
        from models.runtime.device import pick_device

    # predictions
    # the tables' names of the methods, before anything slow: two equal folders are refused here
    folders = scoring.name_methods(settings.metrics.prediction)
    names = lists.read_list(settings.metrics.images) if settings.metrics.images else None
    # the lungs' scores need masks; for the findings the lungs are found where a mask is missing
    masks = settings.metrics.masks or scoring.masks_beside(settings.metrics.cxr)
    found = findings.read(settings.metrics.findings) if settings.metrics.findings else []

    # a place that cannot be written, or holds other files of these names, is refused before the work
    output = Path(settings.metrics.output)
    inputs = [Path(settings.metrics.findings)] if found else []
    report.refuse_foreign(output, list(folders), inputs, "metrics.output", findings_tables.FILES if found else ())

    # said, not refused: a person may have put the predictions together on purpose
    for line in scoring.doubtful(folders):
        print(line, file=sys.stderr)

    # scores
    device = pick_device(settings.device)
    scored = scoring.score_folders(
        folders,
        settings.metrics.cxr,
        settings.metrics.target,
        masks=masks,
        names=names,
        size=settings.metrics.size,
        device=device,
        features=settings.features,
    )

    # tables and pictures
    page = settings.metrics.page
    print(report.write(scored, output, folders, settings.metrics.seed, page=page, found=found))
    if found:
        measured = findings.measure(
            folders,
            settings.metrics.cxr,
            found,
            target=settings.metrics.target,
            masks=masks,
            seed=settings.metrics.seed,
        )
        # findings may fail for images that were scored, and the other way round: both kinds of fault are told
        print(findings_tables.write(measured, output))
        scored.faults.extend(measured.faults)
    print(f"written to {settings.metrics.output}; intervals and paired tests are in metrics.txt")
    for fault in scored.faults:
        print(fault, file=sys.stderr)
    # a script that calls this one should notice that the tables are of fewer images than asked
    return 1 if scored.faults else 0


if __name__ == "__main__":
    entry.run(main)
