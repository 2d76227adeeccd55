"""Sweeps: many trainings that one file describes and one command runs."""
