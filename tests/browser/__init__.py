"""The report in a real headless Chromium, as people see it: drawn, readable, switched, filtered, live."""
