#!/bin/bash
# Submodules, if gitops.submodules is true.

# Remove the files of submodules that the target does not have, unless they contain a person's work. Their repositories
# stay in .git/modules. No configuration (of the user, or of the tree) may hide work, and an error is not "no work".
# Needs: setting, head, target. Sets: removed_submodules.
remove_dropped_submodules() {
    [[ ${setting[submodules]} == true && $head ]] || return 0
    local modes path found look='git status --porcelain --untracked-files=all --ignored --ignore-submodules=none'
    while IFS= read -r -d '' modes && IFS= read -r -d '' path; do
        [[ $modes == ':160000 '* && $modes != ':160000 160000 '* && -e $path/.git ]] || continue
        if ! found=$(cd "$path" && in_checkout bash -c "$look && git submodule --quiet foreach --recursive '$look'") ||
            [[ $found ]]; then
            finish dirty "the remote has removed the submodule $path, which contains local changes; commit or remove them"
        fi
        git submodule --quiet deinit --force -- "$path"
        removed_submodules+=("$path")
    done < <(git diff --raw -z --no-renames --ignore-submodules=none "$head" "$target")
}

# Bring removed submodules back after a move that was refused: the commit that stays has them.
restore_dropped_submodules() { ((${#removed_submodules[@]} == 0)) || update_submodules "${removed_submodules[@]}"; }

# update_submodules [PATH...]: update these submodules, or all. Ends with `dirty` or `unreachable` on failure.
# Needs: setting, head.
update_submodules() {
    [[ ${setting[submodules]} == true && -e .gitmodules ]] || return 0
    local output
    output=$({
        git submodule --quiet sync --recursive && remote_git submodule --quiet update --init --recursive -- "$@"
    } 2>&1) && return
    parse_git_errors "$output"
    ((${#blocking_paths[@]} == 0)) ||
        finish dirty "local changes in a submodule prevent its update for ${head:0:10}: ${blocking_paths[*]}; $git_error; \
commit or stash them there"
    finish unreachable "submodules of ${head:0:10} cannot be fetched: $git_error; tried again later"
}
