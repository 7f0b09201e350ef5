-- title: Overlap of singular vectors with the activations' covariance, rank by rank
-- about: overlap is O_k = max_j |v_k . f_j|: how much of a right singular vector lies along one principal direction of the
--   activations that enter its matrix; the mean over the matrices of one role and shape. Random vectors stay in the band from
--   random_low to random_high (0.135 and 99.865 %). peak is the largest |entry| of v_k, the same for the standard basis.
-- param: model VARCHAR = NULL | only this model
-- param: run VARCHAR = NULL | this run instead of each model's newest
-- param: role VARCHAR = NULL | only this role
-- param: centred BOOLEAN = TRUE | the covariance of the activations; if false, their second moments
-- column: model | the model's name
-- column: role | what the matrix does in its block
-- column: rows | output features
-- column: cols | input features
-- column: k | rank of the singular triplet, 0 = largest singular value
-- column: matrices | matrices averaged over
-- column: singular_value | mean
-- column: overlap | mean O_k
-- column: match | mean rank j of the principal direction that the overlap is with, 0 = largest eigenvalue
-- column: eigenvalue | mean eigenvalue of that direction
-- column: peak | mean largest |entry|
-- column: random_low | 0.135 % of O_k for random vectors
-- column: random_middle | its median
-- column: random_high | 99.865 %
with runs as (
    select run_id
    from (select distinct run_id, model from "overlaps")
    left join experiments using (run_id, model)
    where ($model is null or model = $model) and ($run is null or run_id = $run)
    qualify row_number() over (partition by model order by finished_at desc nulls last, run_id desc) = 1
),

chosen as (
    select *
    from "overlaps"
    semi join runs using (run_id)
    where centred = $centred and ($role is null or role = $role)
),

-- The largest of n Gaussian entries of variance 1/n is below x with probability (2 Phi(x sqrt n) - 1)^n; Phi's inverse by Acklam's
-- rational approximation (relative error 1e-9), once near the middle (few entries) and once in the tail.
band as (
    select
        cols,
        max(x) filter (where q = 0.00135) as random_low,
        max(x) filter (where q = 0.5) as random_middle,
        max(x) filter (where q = 0.99865) as random_high
    from (
        select
            cols,
            q,
            (1 - exp(ln(q) / cols)) / 2 as tail,
            sqrt(-2 * ln(tail)) as t,
            0.5 - tail as y,
            y * y as r,
            case
                when tail < 0.02425 then -(
                    ((((-7.784894002430293e-03 * t - 3.223964580411365e-01) * t - 2.400758277161838) * t - 2.549732539343734) * t
                    + 4.374664141464968) * t + 2.938163982698783
                ) / ((((7.784695709041462e-03 * t + 3.224671290700398e-01) * t + 2.445134137142996) * t + 3.754408661907416) * t + 1)
                else (
                    ((((-3.969683028665376e+01 * r + 2.209460984245205e+02) * r - 2.759285104469687e+02) * r
                    + 1.383577518672690e+02) * r - 3.066479806614716e+01) * r + 2.506628277459239
                ) * y / (
                    ((((-5.447609879822406e+01 * r + 1.615858368580409e+02) * r - 1.556989798598866e+02) * r
                    + 6.680131188771972e+01) * r - 1.328068155288572e+01) * r + 1
                )
            end / sqrt(cols) as x
        from (select distinct cols from chosen)
        cross join (values (0.00135::double), (0.5), (0.99865)) as quantiles (q)
    )
    group by cols
)

select
    model,
    role,
    rows,
    cols,
    k,
    count(*)::integer as matrices,
    avg(singular_value) as singular_value,
    avg(overlap) as overlap,
    avg(match) as match,
    avg(eigenvalue) as eigenvalue,
    avg(peak) as peak,
    any_value(random_low) as random_low,
    any_value(random_middle) as random_middle,
    any_value(random_high) as random_high
from chosen
join band using (cols)
group by model, role, rows, cols, k
order by model, role_order(role), role, rows, cols, k;
