"""Tests: unit/ (mirrors the folders), distributed/ (processes), integration/ (whole runs), drills/ (kills), golden/."""
