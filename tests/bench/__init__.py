"""`make bench`: whip beside what a user would pick instead, on one machine, in one run.

contender  one way to reach the service: straight, through whip, or through a peer
workload   what is asked of it: small requests, new connections, one big body
round      every contender once, one after the other, so that a busy moment hits them all
row        one line of the table: a number, or a ratio of two contenders, and its target
cost       the CPU seconds and the memory of the processes that a contender consists of
fleet      many scripted agents in few processes
scale      many agents at several brokers, by itself: `python -m bench.scale`
swarm      the agents of that: they come back and take dials
"""
