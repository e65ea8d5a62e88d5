import java.util.Arrays;
import java.util.Set;
import java.util.TreeSet;
import org.junit.runner.Description;
import org.junit.runner.JUnitCore;
import org.junit.runner.Request;
import org.junit.runner.manipulation.Filter;
import org.junit.runner.notification.Failure;
import org.junit.runner.notification.RunListener;

/**
 * Runs one JUnit 4 class, or the named methods of it. Prints one line for each test, "PASS|FAIL|SKIP METHOD SECONDS
 * [WHY]", after a failure its stack trace, indented, and at the end "N of M passed".
 */
public class RunTests {
  public static void main(String[] args) throws Exception {
    Set<String> only = new TreeSet<>(Arrays.asList(args).subList(1, args.length));
    Request request = Request.aClass(Class.forName(args[0]));
    if (!only.isEmpty()) {
      request = request.filterWith(named(only));
    }
    Printer printer = new Printer();
    JUnitCore core = new JUnitCore();
    core.addListener(printer);
    core.run(request);
    System.out.println(printer.passed + " of " + (printer.passed + printer.failed) + " passed");
    System.exit(printer.failed == 0 && printer.passed > 0 ? 0 : 1);
  }

  private static Filter named(Set<String> only) {
    return new Filter() {
      @Override
      public boolean shouldRun(Description d) {
        return d.isSuite() || only.contains(d.getMethodName());
      }

      @Override
      public String describe() {
        return only.toString();
      }
    };
  }

  private static final class Printer extends RunListener {
    int passed;
    int failed;
    private long begun;
    private Failure failure;
    private boolean assumed;

    @Override
    public void testStarted(Description d) {
      begun = System.nanoTime();
      failure = null;
      assumed = false;
    }

    @Override
    public void testFailure(Failure f) {
      failure = f;
      if (!f.getDescription().isTest()) { // in a class's own set-up
        print("FAIL", f.getDescription().getDisplayName());
      }
    }

    @Override
    public void testAssumptionFailure(Failure f) {
      assumed = true;
    }

    @Override
    public void testIgnored(Description d) {
      begun = System.nanoTime();
      print("SKIP", d.getMethodName());
    }

    @Override
    public void testFinished(Description d) {
      print(failure != null ? "FAIL" : assumed ? "SKIP" : "PASS", d.getMethodName());
    }

    private void print(String how, String test) {
      System.out.printf("%s %s %.2f%n", how, test, (System.nanoTime() - begun) / 1e9);
      if (how.equals("PASS")) {
        passed++;
      } else if (how.equals("FAIL")) {
        failed++;
        for (String line : failure.getTrace().split("\n")) {
          System.out.println("  " + line.trim());
        }
      }
      System.out.flush();
    }
  }
}
