#!/bin/bash
# Move the branch and the tree to a commit.

# Move to the target, or end because a person's work is in the way.
# Needs: target, branch, setting. Sets: see move_to.
move() {
    local there="$branch ${target:0:10}"
    remove_dropped_submodules
    move_to "$target" && return
    if ((${#blocking_paths[@]})); then
        exclude_filtered_paths
        if ((${#blocking_paths[@]} == 0)) || { [[ ${setting[dirty]} == stash ]] && stash_blocking_paths; }; then
            rm -f -- "${filtered_paths[@]}" # git writes them again
            move_to "$target" && return
            restore_filtered_paths
        fi
    fi
    restore_dropped_submodules
    ((${#blocking_paths[@]} == 0)) ||
        finish dirty "local changes prevent the move to $there: ${blocking_paths[*]}; commit or stash them, or let runs stash them" \
            "$(git_fix config gitops.dirty stash)"
    ! has_unfinished_merge ||
        finish dirty "an unfinished merge or rebase prevents the move to $there; finish or abort it"
    ! is_broken || repair "$git_error"
    finish failed "the move to $there failed, and the tree was put back: $git_error"
}

# move_to COMMIT: set the tracked branch to a commit, and update the tree. `git switch` is used because it keeps staged
# changes, refuses to overwrite ignored files, and works from another branch and from a detached HEAD.
# Needs: branch, head, head_branch. Sets: head, head_branch, moved, deploy_started's note, git_error, blocking_paths.
# Returns false if git refused (`blocking_paths` names the files) or failed; then everything is as it was.
move_to() {
    local to=$1 from=$head output status=0 lock_taken=''
    [[ $from ]] || from=$(git hash-object -t tree /dev/null)
    write_note "$from" "$to" "$deploy_started"
    # In English, because parse_git_errors reads it.
    output=$(LANGUAGE=en exec "${END_WITH_SCRIPT[@]}" \
        "${GIT[@]}" switch --quiet --no-overwrite-ignore -C "$branch" "$to" 2>&1 9<&-) || status=$?
    parse_git_errors "$output"
    ((status == 1)) || blocking_paths=() # a refusal exits 1; after a fatal error, a filter may have printed anything
    if [[ $output == *"/index.lock': File exists"* ]]; then lock_taken=yes; fi
    if ((status == 0)) || is_checked_out "$to"; then # git moves HEAD last, so it may have been killed after its work
        if is_tree_written "$from" "$to" "$output"; then
            head=$to head_branch=$branch moved=yes
            keep_overwritten_commit
            return 0
        fi
        restore_head
    fi
    # A refusal, or a lock of another git, comes before the first file is written.
    if ((${#blocking_paths[@]} == 0)) && [[ ! $lock_taken ]] && ! has_unfinished_merge && ! put_back "$from" "$to" live; then
        git_error+='; some files cannot be put back now, and the next run tries again'
    elif [[ $deploy_pending ]]; then
        write_note "$from" "$from" "$deploy_started"
    else
        clear_note
    fi
    [[ $lock_taken ]] || return 1
    restore_dropped_submodules
    finish unreachable "a running git holds '$GIT_DIR/index.lock'; tried again later"
}

# Return true if HEAD is the tracked branch at this commit.
is_checked_out() {
    [[ $(git rev-parse --verify --quiet --symbolic-full-name HEAD) == "refs/heads/$branch" &&
        $(git rev-parse --verify --quiet HEAD) == "$1" ]]
}

# is_tree_written FROM TO OUTPUT: return false if a file that the move had to change does not have its new content.
# git moves HEAD and exits 0 even if it cannot write or remove some files; it only prints a message.
is_tree_written() {
    [[ $'\n'$3 == *$'\n'@(error|warning)': '* ]] || return 0
    local path
    while IFS= read -r -d '' path; do
        git cat-file -e "$2:$path" 2>/dev/null && equals_committed "$path" "$2" || return 1
    done < <(LC_ALL=C comm -z -12 \
        <(git diff --name-only -z --no-renames --ignore-submodules=all "$1" "$2") \
        <(git ls-files -z --modified --deleted --others | LC_ALL=C sort -zu))
}

# Set HEAD and the branch to their values before the move.
# Needs: branch, local_branch, head, head_branch.
restore_head() {
    git update-ref --stdin <<<"update refs/heads/$branch \"${local_branch[$branch]:-}\""
    if [[ $head_branch ]]; then
        git symbolic-ref HEAD "refs/heads/$head_branch"
    elif [[ $head ]]; then
        git update-ref --no-deref HEAD "$head"
    fi
}

# Return true if a person has begun a merge, a rebase or the like.
has_unfinished_merge() {
    local sign
    for sign in MERGE_HEAD CHERRY_PICK_HEAD REVERT_HEAD rebase-merge rebase-apply; do
        [[ ! -e $GIT_DIR/$sign ]] || return 0
    done
    [[ $(git ls-files --unmerged) ]]
}

# Report what a run would do (--dry-run). A copy of the index shows what would refuse the move.
preview_move() {
    local copy output
    copy=$(mktemp) || finish failed "no temporary file can be created"
    if cp -- "$GIT_DIR/index" "$copy" 2>/dev/null; then
        GIT_INDEX_FILE=$copy git update-index -q --refresh >/dev/null
        output=$(GIT_INDEX_FILE=$copy git read-tree --dry-run -um --exclude-per-directory=.gitignore \
            "${head:-$(git hash-object -t tree /dev/null)}" "$target" 2>&1) || {
            rm -f "$copy"
            finish dirty "local changes would prevent the move to $branch ${target:0:10}: $output"
        }
    fi
    rm -f "$copy"
    finish unchanged "would move from ${head:0:10} to $branch ${target:0:10}${setting[deploy]:+ and deploy it}"
}
