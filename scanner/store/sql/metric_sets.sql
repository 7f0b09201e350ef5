-- Metrics that scans of matrices with several scans computed, and the order in which these finished. In `mixed_metrics` are those whose
-- scans computed different ones: there, each column of a metric comes from the newest scan that computed it.
create table files.metric_sets as
select
    scan_id,
    model,
    revision,
    struct_pack(at := coalesce(finished_at, 'epoch'::timestamp), scan_id := scan_id) as finished,
    case
        when json_valid(method)
            then list_sort(list_concat(
                coalesce(try_cast(json_extract(method, '$.metric_set') as varchar[]), []),
                coalesce(try_cast(json_extract(method, '$.metrics') as varchar[]), [])
            ))
        else []
    end as names
from scans
semi join files.rescanned using (scan_id);

create view files.mixed_metrics as
select scan_id
from files.metric_sets
qualify count(distinct names) over (partition by model, revision) > 1;
