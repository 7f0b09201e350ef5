-- Models of the store in the order of their names, differences last, each with what its pages are made from.
select
    model,
    starts_with(model, 'delta:') as difference,
    list(scan_id order by scan_id) as scans,
    sum(matrices)::bigint as matrices,
    sum(vectors)::bigint as triplets
from scans
semi join (
    from chosen_scans(null, null)
    union all
    select scan_id
    from scans
    where starts_with(model, 'delta:')
) using (scan_id)
group by model
order by difference, model;
