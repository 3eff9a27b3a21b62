package main

import (
	"strings"
	"testing"
)

func TestRuleOfAWSIsShownAsItWouldBeAdded(t *testing.T) {
	const rule = `{"ruleName": "hot", "topicRulePayload": {"sql": "SELECT a FROM 'x'", "awsIotSqlVersion": "2016-03-23", "actions": [{"republish": {"topic": %q}}]}}`
	out, err := naruWith(t, strings.Replace(rule, "%q", `"t"`, 1), "rule", "import", "-", "--print", "-o", "json")
	if err != nil || !strings.Contains(out, `"topic": "t"`) || !strings.Contains(out, `"name": "hot"`) {
		t.Errorf("it is shown as %s (%v)", out, err)
	}
	if _, err := naruWith(t, strings.Replace(rule, "%q", `"operator/x"`, 1), "rule", "import", "-", "--print"); err == nil || !strings.Contains(err.Error(), "said by the platform alone") {
		t.Errorf("a rule that naru would refuse is shown: %v", err)
	}
}
