-- Mean singular value by decile (1 = the smallest) of the matrices that the deciles of a run were taken from, by their roles and
-- layers: from scans of the run's revision, and nothing of roles and layers that these have not whole.
with points as (
    select distinct model, revision, roles, layers, split_part(set, ':', 2)::integer as decile, removed
    from ablation_points(null, $run, null)
    where starts_with(set, 'decile:')
),

-- layers is `0-5,7`, or `encoder:0-5 decoder:0-5` where a model has two stacks.
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
        spans.roles,
        spans.layers,
        10 - (10 * k) // least(rows, cols) as decile,
        count(*) as removed,
        avg(singular_value) as singular_value
    from spans
    join vectors
        on vectors.model = spans.model
        and vectors.revision is not distinct from spans.revision
        and list_contains(string_split(spans.roles, ','), vectors.role)
        and vectors.stack is not distinct from spans.stack
        and vectors.layer between first_layer and last_layer
        and head is null
    group by all
),

-- Scans of all matrices that were changed have as many singular values in a decile as were removed.
partly as (
    select roles, layers
    from points
    anti join scanned using (roles, layers, decile, removed)
)

select roles, layers, decile, singular_value
from scanned
anti join partly using (roles, layers)
order by roles, layers, decile;
