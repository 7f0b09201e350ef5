-- Roles in the order in which data passes through a block, for ORDER BY.
create macro role_order(role) as
    coalesce(
        list_position(
            [
                'embedding', 'query', 'key', 'value', 'attn_out', 'qk', 'ov', 'mlp_up', 'mlp_gate', 'mlp_down', 'router',
                'other', 'lm_head'
            ],
            role
        ),
        100
    );

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

-- Probability that a standard normal X is farther from 0 than z, erfc(|z| / sqrt 2). Chebyshev fit of Press et al., Numerical Recipes,
-- section 6.2 (relative error below 2e-7); t = 1 / (1 + |z| / sqrt 8).
create macro normal_outside_at(z, t) as
    t * exp(
        -(z * z) / 2 - 1.26551223 + t * (1.00002368 + t * (0.37409196 + t * (0.09678418 + t * (-0.18628806
        + t * (0.27886807 + t * (-1.13520398 + t * (1.48851587 + t * (-0.82215223 + t * 0.17087277))))))))
    );
create macro normal_outside(z) as
    normal_outside_at(z, 1 / (1 + abs(z) / sqrt(8)));

-- Quantile q of O_k for a random vector: the largest of n Gaussian |entries| of variance 1/n is below x with probability
-- (2 Phi(x sqrt n) - 1)^n.
create macro random_overlap(entries, q) as
    normal_above((1 - exp(ln(q::double) / entries)) / 2) / sqrt(entries);
