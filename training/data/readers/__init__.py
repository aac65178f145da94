"""What each kind of source reads, row by row; none of them lets a bad row end the reading.

rows.py        a row, and why one cannot be used
places.py      the files that `path` names, opened and decompressed
embedded.py    the King James Version
text.py        files of one document each (also Python's standard library), files of one document a line
json_lines.py  JSON Lines
tables.py      parquet, arrow and the Hugging Face hub, by `datasets`
"""
