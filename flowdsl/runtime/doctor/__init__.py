"""Examining whether a network fits an objective: can it be called, differentiated, distributed?"""

from flowdsl.runtime.doctor.examine import Examination, all_examinations, examine
from flowdsl.runtime.doctor.finding import Finding, Report
from flowdsl.runtime.doctor.loading import load_network
from flowdsl.runtime.doctor.patient import DoctorOptions, Patient

__all__ = [
    "DoctorOptions",
    "Examination",
    "Finding",
    "Patient",
    "Report",
    "all_examinations",
    "examine",
    "load_network",
]
