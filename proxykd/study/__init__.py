"""Methods compared: arms by seeds, the stages that they share, the study's report and page.

What one run is and finds, it has from report and stages. May import report and what that may.
"""
