-- title: Seconds of workers that a scan takes, by the size of the model
-- about: The work of scanning a transformer grows with parameters^(4/3): decompositions are cubic in the width, and the width
--   grows with the cube root of the parameters. seconds_per_work is what nightly scans expect of this machine. Scans of small
--   models, and scans without times, are left out.
-- param: at_least DOUBLE = 1e6 | parameters of the smallest model that counts
-- column: scans | number of scans
-- column: seconds_per_work | median of seconds / parameters^(4/3), s
-- show: scans, seconds_per_work
select
    count(*)::integer as scans,
    median(seconds / power(parameters, 4 / 3)) as seconds_per_work
from scans
where parameters >= $at_least and seconds > 0 and not starts_with(model, 'delta:')
having count(*) > 0;
