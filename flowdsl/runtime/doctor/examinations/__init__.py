"""The examinations: one file each, found by its name.

A file here defines `QUESTION`, what it asks in a line; `AFTER`, the names of the examinations
without which it makes no sense; and `look(patient)`, which returns a finding, or None where there
is nothing to examine.
"""
