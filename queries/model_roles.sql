-- title: Every measure of every role, models of a role next to each other
-- about: One row per role and model, models of a role next to each other. With a and b, two models are compared; the result is
--   empty if one of them is not scanned. Differences (delta:BASE..TUNED) are left out unless named. Means are over the
--   matrices of the role, whatever their shape. p_difference is how much more random a role is in one model than on
--   average over the models shown. `model_compare` has one row per model.
-- param: a MODEL = NULL | compare this model with b
-- param: b MODEL = NULL | compare this model with a
-- param: revision VARCHAR = NULL | the newest revision of each model that begins with this, instead of the newest
-- param: role VARCHAR = NULL | this role only
-- param: heads BOOLEAN = FALSE | slices of attention heads instead of whole matrices
-- column: role | role of the matrix in its block
-- column: model | name of the model
-- column: matrices | number of matrices of this role
-- column: shapes | their rows x cols
-- column: parameters | number of entries of these matrices
-- column: p | mean of u_p and v_p
-- column: p_difference | p minus the mean of the models shown; NULL for a single model
-- column: u_p | left singular vectors: mean p-value; 0.5 for random matrices
-- column: v_p | right singular vectors: mean p-value
-- column: below_percent | singular values below the Marchenko-Pastur bulk, percent
-- column: above_percent | singular values above the Marchenko-Pastur bulk, percent
-- column: mp_ks | largest distance between a spectrum and its Marchenko-Pastur law, mean
-- column: stable_rank_percent | stable rank, percent of min(rows, cols), mean
-- column: effective_rank_percent | effective rank, percent of min(rows, cols), mean
-- show: role, model, matrices, p, p_difference, below_percent, above_percent, mp_ks, stable_rank_percent
with roles as (
    select
        role,
        model,
        count(*)::integer as matrices,
        string_agg(distinct rows || 'x' || cols, ', ' order by rows || 'x' || cols) as shapes,
        sum(rows::bigint * cols)::bigint as parameters,
        (avg(u_p_mean) + avg(v_p_mean)) / 2 as p,
        avg(u_p_mean) as u_p,
        avg(v_p_mean) as v_p,
        100 * sum(outliers_left) / sum(least(rows, cols)) as below_percent,
        100 * sum(outliers_right) / sum(least(rows, cols)) as above_percent,
        avg(mp_ks) as mp_ks,
        100 * avg(stable_rank / least(rows, cols)) as stable_rank_percent,
        100 * avg(effective_rank / least(rows, cols)) as effective_rank_percent
    from matrices
    semi join (
        from chosen_scans(coalesce($a, $b), $revision)
        union
        from chosen_scans(coalesce($b, $a), $revision)
    ) using (scan_id)
    where
        ($role is null or role = $role)
        and (head is not null) = $heads and role not in ('qk', 'ov')
    group by role, model
)

select
    role,
    model,
    matrices,
    shapes,
    parameters,
    p,
    case when count(*) over (partition by role) > 1 then p - avg(p) over (partition by role) end as p_difference,
    u_p,
    v_p,
    below_percent,
    above_percent,
    mp_ks,
    stable_rank_percent,
    effective_rank_percent
from roles
where $a is null or $b is null or $a = $b or (select count(distinct model) from roles) = 2
order by role_order(role), role, model;
