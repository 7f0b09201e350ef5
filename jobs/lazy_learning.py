"""Entry point for `ray job submit`: the verb `lazy-learning`, on the cluster of the job.

    ray job submit --address http://HEAD:8265 -- python jobs/lazy_learning.py --data /shared/cifar-10-batches-py --store s3://bucket/results

Arguments and exit status are those of `rmtscan lazy-learning`. Ray sets RAY_ADDRESS in a job, so the command joins
the cluster of the job.
"""

import sys

from scanner.cli.main import main

if __name__ == "__main__":
    main(["lazy-learning", *sys.argv[1:]])
