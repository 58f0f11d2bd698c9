"""Evaluation: a method over many X-rays, ablations, scores of folders, their tables and pictures."""
