"""Simulation: drawn patients, CTs, rays and display -> folders of pairs."""
