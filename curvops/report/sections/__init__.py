"""The sections of the report, one file each.

Every module in this package is imported when a report is made, and registers its section with
:func:`curvops.report.registry.section`.
"""
