-- Results of scans that a newer scan has partly repeated, without the repeated matrices.
create macro not_superseded(results) as table
select result.*
from query_table(results) as result
anti join files.superseded as old
    on old.scan_id = result.scan_id and same_matrix(old, result);

-- Newest results, which queries read. Scans whose results are all the newest are read whole, without a join; scans whose results
-- are all superseded are not read.
create view matrices as
from files.whole_matrices
union all by name
from not_superseded('files.partly_matrices');

create view vectors as
from files.whole_vectors
union all by name
from not_superseded('files.partly_vectors');

-- Scans of one model, or (null) of all models except differences, each in one revision: the newest that begins with `wanted_revision`.
-- `semi join chosen_scans($model, $revision) using (scan_id)` lets DuckDB skip the row groups of other models.
create macro chosen_scans(wanted_model, wanted_revision) as table
select scan_id
from scans
where
    case when wanted_model is null then not starts_with(model, 'delta:') else model = wanted_model end
    and (wanted_revision is null or starts_with(revision, wanted_revision))
qualify
    revision is not distinct from first_value(revision) over (
        partition by model
        order by (revision = wanted_revision) desc nulls last, finished_at desc nulls last, scan_id desc
    );

-- Comparisons with a newest result of the selected pairs of models (null: all), or one selected comparison.
-- `semi join chosen_comparisons($base, $tuned) using (pair_id)`.
create macro chosen_comparisons(wanted_base, wanted_tuned, wanted_pair := null) as table
select pair_id, model_pair
from files.compared
where
    (wanted_base is null or base_model = wanted_base)
    and (wanted_tuned is null or tuned_model = wanted_tuned)
    and case when wanted_pair is null then not superseded else pair_id = wanted_pair end;

-- The newest results of the selected pairs of models, or all results of one comparison, with the number of the pair of models:
-- `join files.model_pairs using (model_pair)` gives its names. The condition on pair_id is pushed down to READ_PARQUET, so that row
-- groups of other pairs are skipped.
create macro chosen_results(all_results, wanted_base, wanted_tuned, wanted_pair) as table
select result.*, chosen.model_pair
from query_table(all_results) as result
join chosen_comparisons(wanted_base, wanted_tuned, wanted_pair) as chosen using (pair_id)
anti join (from files.superseded_pairs where wanted_pair is null) as old
    on old.pair_id = result.pair_id and same_pair(old, result);

create macro chosen_pairs(wanted_base, wanted_tuned, wanted_pair) as table
from chosen_results('all_pairs', wanted_base, wanted_tuned, wanted_pair);

create macro chosen_pair_vectors(wanted_base, wanted_tuned, wanted_pair) as table
from chosen_results('all_pair_vectors', wanted_base, wanted_tuned, wanted_pair);

create macro chosen_pair_subspaces(wanted_base, wanted_tuned, wanted_pair) as table
from chosen_results('all_pair_subspaces', wanted_base, wanted_tuned, wanted_pair);

-- The newest result of every pair of matrices; `all_pairs`, `all_pair_vectors`, `all_pair_subspaces` hold the results of all comparisons.
create view pairs as
select * exclude (model_pair)
from chosen_pairs(null, null, null);

create view pair_vectors as
select * exclude (model_pair)
from chosen_pair_vectors(null, null, null);

create view pair_subspaces as
select * exclude (model_pair)
from chosen_pair_subspaces(null, null, null);

-- Roles in the order in which data passes through a block, for ORDER BY.
create macro role_order(role) as
    coalesce(
        list_position(
            [
                'embedding', 'query', 'key', 'value', 'attn_out', 'mlp_up', 'mlp_gate', 'mlp_down', 'router', 'other',
                'lm_head'
            ],
            role
        ),
        100
    );

-- Matrices of one selected run over activations, or (null) every matrix in its newest run, of the newest revision of a model.
-- Unfinished runs come after finished ones. `semi join chosen_activations($model, $run) using (run_id, tensor, role)`.
create macro chosen_activations(wanted_model, wanted_run) as table
select run_id, tensor, role
from (select distinct run_id, model, revision, tensor, role from "overlaps")
left join (select run_id, finished_at from experiments) using (run_id)
where (wanted_model is null or model = wanted_model) and (wanted_run is null or run_id = wanted_run)
qualify
    row_number() over (partition by model, tensor, role order by finished_at desc nulls last, run_id desc) = 1
    and revision is not distinct from first_value(revision) over (
        partition by model
        order by finished_at desc nulls last, run_id desc
    );

-- Overlaps of these matrices, centered or not, of one role or all (null).
create macro chosen_overlaps(wanted_model, wanted_run, wanted_role, wanted_centred) as table
select *
from "overlaps"
semi join chosen_activations(wanted_model, wanted_run) using (run_id, tensor, role)
where centred = wanted_centred and (wanted_role is null or role = wanted_role);

-- x with P(X > x) = tail for a standard normal X, tail <= 1/2. Acklam's rational approximation (relative error 1e-9), one near the
-- middle (y = 1/2 - tail, r = y^2) and one in the tail (t = sqrt(-2 ln tail)).
create macro normal_in_tail(t) as
    -(
        ((((-7.784894002430293e-03 * t - 3.223964580411365e-01) * t - 2.400758277161838) * t - 2.549732539343734) * t
        + 4.374664141464968) * t + 2.938163982698783
    ) / ((((7.784695709041462e-03 * t + 3.224671290700398e-01) * t + 2.445134137142996) * t + 3.754408661907416) * t + 1);
create macro normal_in_middle(y, r) as
    (
        ((((-3.969683028665376e+01 * r + 2.209460984245205e+02) * r - 2.759285104469687e+02) * r
        + 1.383577518672690e+02) * r - 3.066479806614716e+01) * r + 2.506628277459239
    ) * y / (
        ((((-5.447609879822406e+01 * r + 1.615858368580409e+02) * r - 1.556989798598866e+02) * r
        + 6.680131188771972e+01) * r - 1.328068155288572e+01) * r + 1
    );
create macro normal_above(tail) as
    case
        when tail < 0.02425 then normal_in_tail(sqrt(-2 * ln(tail)))
        else normal_in_middle(0.5 - tail, (0.5 - tail) * (0.5 - tail))
    end;

-- Quantile q of O_k for a random vector: the largest of n Gaussian |entries| of variance 1/n is below x with probability
-- (2 Phi(x sqrt n) - 1)^n.
create macro random_overlap(entries, q) as
    normal_above((1 - exp(ln(q::double) / entries)) / 2) / sqrt(entries);

-- Points of the selected runs (null: all), without the intact model. A run has one content and one text: if they were renamed between
-- two calls, its points have the newest names.
create macro ablation_points(wanted_model, wanted_run, wanted_metric) as table
select *
from (
    select
        ablations.* replace (
            first_value(model) over newest_first as model,
            first_value(revision) over newest_first as revision,
            first_value(dataset) over newest_first as dataset
        )
    from ablations
    semi join (select run_id from experiments where kind = 'ablation') using (run_id)
    window newest_first as (partition by run_id order by finished_at desc nulls last, model, dataset)
)
where
    (wanted_model is null or model = wanted_model)
    and (wanted_run is null or run_id = wanted_run)
    and (wanted_metric is null or metric = wanted_metric)
    and set != 'none';

-- For matrices whose deciles were removed, by decile: mean singular value, mean p and share outside the bulk from a scan of the revision
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

-- Scans of the releases that were scanned in one night, or (null) the newest revision of every model except differences.
-- `semi join night_scans($night) using (scan_id)`.
create macro night_scans(wanted_night) as table
select scan_id
from chosen_scans(null, null)
where wanted_night is null
union all
select distinct scan_id
from releases
where night_id = wanted_night and scan_id is not null;
