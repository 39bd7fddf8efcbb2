"""Balanced modality selection in federated learning: clients, what they send, and whom the server asks next.

The parts know nothing of a transport: `Client` trains and reports, `select` chooses clients and modalities, `average`
and `merge_prototypes` put together what came back, and `Federation` is one server's rounds over all of them: in this
process, or over Flower (`agm.federated.flower`, extra agm-torch[federated]).
"""

from agm.federated.aggregation import average, merge_prototypes
from agm.federated.client import Client, Report, Update
from agm.federated.enhancement import ModalEnhancement
from agm.federated.federation import Clients, Federation, LocalClients
from agm.federated.selection import Choice, select

__all__ = [
    "Choice",
    "Client",
    "Clients",
    "Federation",
    "LocalClients",
    "ModalEnhancement",
    "Report",
    "Update",
    "average",
    "merge_prototypes",
    "select",
]
