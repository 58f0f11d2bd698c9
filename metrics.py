"""Compare predicted soft-tissue images with the truth: BSR, MSE, PSNR, LPIPS, SSIM, and what bone suppression needs besides.

    python metrics.py metrics.prediction=runs/batch_lcm_eval
    python metrics.py metrics.prediction=[runs/ldm_eval,runs/batch_lcm_eval]
    python metrics.py metrics.images=runs/lists/data_testset.txt        only these; what lacks a prediction is named

reads   the images of metrics.prediction and, by the same names, of metrics.cxr and metrics.target; lung masks where there are any;
        the cost of each method from the summary.json that its evaluation left
writes  metrics.output: metrics.txt, .md and .tex (tables of quality, cost, 95 % intervals, paired tests), metrics.csv (every image),
        metrics.json (all), metrics.png (box plots), comparison.png (the first images: CXR | each prediction | truth),
        examples_<method>.png (its best, median and worst image by MSE, with the signed difference); with metrics.findings=list.csv
        findings.txt, .md, .csv and .png: the contrast that known findings keep, and a model observer that looks for them

Everything is brought to metrics.size x metrics.size first: area average where a side shrinks, cubic where it grows. The row
"untouched CXR" is what doing nothing scores. Exit status 1 where a file was missing or unreadable; the rest is scored and written.
A tiny run, seconds on a CPU (an untouched X-ray as the prediction):

    python metrics.py metrics.prediction=data/CXR metrics.size=64 metrics.output=runs/tiny
"""
import sys

from models import config
from models.data import lists
from models.evaluation import findings, report
from models.runtime import entry
from models.runtime.device import pick_device


def main() -> int:
    # settings
    settings = config.parse(__doc__, reads=("runs", "device", "features", "data.root", "metrics"))
    chosen = settings.metrics
    folders = report.name_methods(chosen.prediction)
    names = lists.read_list(chosen.images) if chosen.images else None

    # scores
    scored = report.score_folders(folders, chosen.cxr, chosen.target, masks=chosen.masks or report.masks_beside(chosen.cxr), names=names,
                                  size=chosen.size, device=pick_device(settings.device), features=settings.features)

    # tables and pictures
    print(report.write(scored, chosen.output, folders, chosen.seed))
    if chosen.findings:
        measured = findings.measure(folders, chosen.cxr, findings.read(chosen.findings), target=chosen.target,
                                    masks=chosen.masks or report.masks_beside(chosen.cxr), seed=chosen.seed)
        print(findings.write(measured, chosen.output))
        scored.faults.extend(measured.faults)
    print(f"written to {chosen.output}; intervals and paired tests are in metrics.txt")
    for fault in scored.faults:
        print(fault, file=sys.stderr)
    return 1 if scored.faults else 0


if __name__ == "__main__":
    entry.run(main)
