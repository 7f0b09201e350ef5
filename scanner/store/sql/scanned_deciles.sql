-- For matrices whose deciles were removed, by decile: mean singular value, mean p, its parts and share outside the bulk from a scan of the revision
-- of the run, and the damage, null if the decile was not measured. Scans that do not have all of these matrices (as many values in a
-- decile as were removed) are left out. `layers` is `0-5,7`, or `encoder:0-5 decoder:0-5` for a model with two stacks.
create macro scanned_deciles(wanted_model, wanted_run, wanted_metric) as table
with points as (
    select *, split_part(set, ':', 2)::integer as decile
    from ablation_points(wanted_model, wanted_run, wanted_metric)
    where starts_with(set, 'decile:')
),

stacks as (
    select *, unnest(string_split(layers, ' ')) as of_stack
    from (select distinct model, revision, roles, layers from points)
),

spans as (
    select
        *,
        nullif(regexp_extract(of_stack, '^(.*):', 1), '') as stack,
        unnest(regexp_extract_all(regexp_extract(of_stack, '[^:]*$'), '\d+(?:-\d+)?')) as span,
        split_part(span, '-', 1)::integer as first_layer,
        coalesce(try_cast(split_part(span, '-', 2) as integer), first_layer) as last_layer
    from stacks
),

scanned as (
    select
        spans.model,
        spans.revision,
        spans.roles,
        spans.layers,
        10 - (10 * k) // least(rows, cols) as decile,
        count(*) as removed,
        avg(singular_value) as singular_value,
        avg((u_p + v_p) / 2) as p,
        -- where there are both
        avg((u_p_scale + v_p_scale - u_p - v_p) / 2) as scale,
        avg(0.5 - (u_p_scale + v_p_scale) / 2) filter (where u_p + v_p is not null) as direction,
        avg((region in ('left', 'right'))::integer) as outliers
    from spans
    join vectors
        on vectors.model = spans.model
        and vectors.revision is not distinct from spans.revision
        and list_contains(string_split(spans.roles, ','), vectors.role)
        and vectors.stack is not distinct from spans.stack
        and vectors.layer between first_layer and last_layer
        and head is null
    group by all
)

select
    measured.*,
    scanned.decile,
    scanned.singular_value,
    scanned.p,
    scanned.scale,
    scanned.direction,
    scanned.outliers,
    points.delta
from (select distinct run_id, model, revision, metric, roles, layers from points) as measured
join scanned
    on scanned.model = measured.model
    and scanned.revision is not distinct from measured.revision
    and scanned.roles = measured.roles
    and scanned.layers = measured.layers
left join points
    on points.run_id = measured.run_id
    and points.roles = measured.roles
    and points.layers = measured.layers
    and points.decile = scanned.decile
qualify bool_and(points.removed is null or points.removed = scanned.removed) over (
    partition by measured.run_id, measured.roles, measured.layers
);
