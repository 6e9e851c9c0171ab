"""Tests of coverart.coordination."""
