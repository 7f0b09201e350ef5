-- Mean damage of random sets, and an upper bound of its error: all sets are measured on the same windows, so that errors do not average
-- out. Random sets belong to a run, roles, layers and size. `left join random_sets() using (run_id, roles, layers, removed)`.
create macro random_sets() as table
select
    run_id,
    roles,
    layers,
    removed,
    avg(delta) as random_delta,
    avg(stderr) as random_stderr,
    count(*)::integer as random_sets
from ablations
where starts_with(set, 'random:')
group by run_id, roles, layers, removed;
