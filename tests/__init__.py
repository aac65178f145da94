"""Tests: unit/ (mirrors the folders), distributed/ (real processes), integration/ (whole runs), drills/ (kills), golden/."""
