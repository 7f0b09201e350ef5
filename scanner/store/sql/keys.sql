-- What identifies a matrix within one checkpoint. A fused tensor holds matrices of several roles; head and expert are null where they do
-- not apply. Arguments are names of relations: `join a on a.scan_id = b.scan_id and same_matrix(a, b)`. A comparison with `coalesce` is
-- twice as fast as `is not distinct from`; indexes are not negative.
create macro matrix_key(matrix) as
    struct_pack(tensor := matrix.tensor, role := matrix.role, head := matrix.head, expert := matrix.expert);
create macro same_slice(one, other) as
    one.role = other.role
    and coalesce(one.head, -1) = coalesce(other.head, -1)
    and coalesce(one.expert, -1) = coalesce(other.expert, -1);
create macro same_matrix(one, other) as
    one.tensor = other.tensor and same_slice(one, other);
-- A pair of matrices within one comparison is identified by its base matrix.
create macro pair_key(pair) as
    struct_pack(base_tensor := pair.base_tensor, role := pair.role, head := pair.head, expert := pair.expert);
create macro same_pair(one, other) as
    one.base_tensor = other.base_tensor and same_slice(one, other);
