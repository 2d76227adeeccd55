"""Tests of dreamer; run from the root of the checkout."""
