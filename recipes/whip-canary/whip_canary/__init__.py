"""A plugin of whip: requests with a header go to the instances with a label, others do not.

canary   an instance with the label
marked   said of a request that has the header
"""

from whip_canary.picker import Canary

plugin = Canary()

__all__ = ["Canary", "plugin"]
