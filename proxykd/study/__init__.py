"""Methods compared: arms by seeds, the stages that they share, the study's report and page.

May import report, training and what those may.
"""
